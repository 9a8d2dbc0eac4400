"""What is predicted: the loss, the numbers a user reads, and the metrics; one file per kind of label."""
