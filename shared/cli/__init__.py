"""One file per verb of `polyfm`."""
