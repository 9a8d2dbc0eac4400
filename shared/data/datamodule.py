"""`DataModule`: reading, splitting, fitting transforms on the training part, and loaders that resume exactly."""

from __future__ import annotations

import os
import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from polyfm.shared.data.batch import Batch
from polyfm.shared.data.manifest import Notices, Quarantine
from polyfm.shared.data.sampler import BatchSampler, Key, Passes, process_group
from polyfm.shared.data.splits import Splits
from polyfm.shared.errors import DataError, RecipeError, UsageError, require

STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
"""Signals that ask a run to stop."""


class Samples(Dataset[Any]):
    """Samples by index, made where the loader asks for them (in its workers).

    Args:
        make: From the keys of a batch to its samples; random transforms draw from the key.
        size: How many there are.
    """

    def __init__(self, make: Callable[[list[Key]], list[Any]], size: int) -> None:
        self.make, self.size = make, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Key) -> Any:
        return self.make([key])[0]

    def __getitems__(self, keys: list[Key]) -> list[Any]:
        return self.make(keys)


class Loader(StatefulDataLoader):  # type: ignore[misc]  # it has no annotations
    """One whose workers obey their trainer alone.

    A scheduler that stops a run signals the whole group of processes, but the step under way still needs its batch.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, worker_init_fn=_leave_signals_to_the_trainer, **settings)

    def _get_iterator(self) -> Any:
        """Workers are born with signals held back, until they have said what they do with them."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            return super()._get_iterator()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DataModule(L.LightningDataModule):
    """Base of every domain's data module.

    A domain says how to read, how to fit its transforms, and how to make samples and batches; splits, loaders, the
    saved state and what a run reports are the same everywhere.

    Args:
        path: What to read.
        batch_size: Samples in a step, on each process; with ``token_budget`` the most there may be.
        token_budget: Most tokens in a step, padding counted; 0 for none.
        num_workers: Processes that make batches, or threads that read ahead (`THREADS`); 0 for none.

    The seed is the run's (``--seed_everything``), set by whoever builds the run: ``seed`` decides order and random
    transforms, ``split_seed`` the split (members of an ensemble share it).
    """

    INHERITED: ClassVar[tuple[str, ...]] = ()
    """Arguments that make items what encoders know: a run that starts from another one takes them over."""
    FILES: ClassVar[tuple[str, ...]] = ("path",)
    """Arguments that name files: a run keeps where they stand."""
    LABELS: ClassVar[str] = "data.targets"
    """The option that names the columns to be predicted."""
    READING: ClassVar[tuple[str, ...]] = ()
    """Arguments by which a user says how a file is read (which column …): for a file of new items they may be given
    anew, as in `polyfm predict RUN FILE --data.NAME VALUE`."""

    THREADS: ClassVar[bool] = False
    """Whether ``num_workers`` are threads that read ahead in the training process; see `PooledReads`."""
    SAVES: ClassVar[tuple[str, ...]] = ()
    """Further endings of files that `save_vectors` writes: the field's own formats."""

    splits: Splits
    """Which sample belongs to which part; set by `setup`."""
    quarantine: Quarantine
    """What could not be read, with reasons; set by `setup`."""
    notices: Notices
    """What was read but deserves a word; set by `setup`."""
    remarks: list[str]
    """What was guessed or decided while reading, one line each."""

    def __init__(self, path: str, batch_size: int = 64, token_budget: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        require(batch_size >= 1, "data.batch_size", "at least 1", batch_size)
        require(token_budget >= 0, "data.token_budget", "at least 1, or 0 for none", token_budget)
        require(num_workers >= 0, "data.num_workers", "at least 0", num_workers)
        self.path, self.batch_size, self.token_budget = path, batch_size, token_budget
        self.num_workers = num_workers
        self.seed = self.split_seed = 0
        self.limit = 0
        """Read only so many rows; 0 for all. `polyfm check` sets it."""
        self.remarks, self.quarantine, self.notices = [], Quarantine(), Notices()
        self.source = ""
        """What was read last: ``path``, or a file of new items."""
        self._ready = False
        self._fitted = False
        self._taken_over: dict[str, Any] = {}
        self._parts: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the trainer: where processes are spawned, workers get a copy of the data, not of the run."""
        return {**self.__dict__, "trainer": None}

    # What a domain writes -------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self) -> Splits:
        """Read ``path``, keep the table, set ``quarantine``, ``notices`` and ``remarks``; say which row goes where."""

    @abstractmethod
    def fit_transforms(self, train: np.ndarray) -> None:
        """Fit vocabulary, means, tables … on the training part only.

        Args:
            train: (n,) indices of training samples.
        """

    @abstractmethod
    def transforms_state(self) -> dict[str, Any]:
        """What `fit_transforms` learnt, as primitives: it goes into the checkpoint."""

    @abstractmethod
    def load_transforms(self, state: dict[str, Any]) -> None:
        """Take over what another run learnt.

        Args:
            state: As made by `transforms_state`.
        """

    @abstractmethod
    def lengths(self) -> np.ndarray:
        """(n,) tokens of each sample, for batches of near length."""

    @abstractmethod
    def make_samples(self, keys: list[Key]) -> list[Any]:
        """The transformed samples of a batch.

        Args:
            keys: Which, and in which pass.
        """

    @abstractmethod
    def samples_from(self, items: Any, **reading: Any) -> list[Any]:
        """Transformed samples of a user's own items (strings, a path), in their order.

        Args:
            items: What `polyfm.load(run).embed` was given.
            reading: How a file is read, by the names in `READING`; what is not given is as in the run, or guessed.
        """

    def ids_of(self, samples: Any) -> list[str]:
        """Ids of samples, in their order.

        Args:
            samples: As from `samples_from`.
        """
        return [sample.id for sample in samples]

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Batch:
        """From samples to a batch.

        Args:
            samples: Transformed.
        """

    def save_vectors(
        self, model: Any, source: Path, out: Path, samples: Any, modality: str, *, projected: bool = False
    ) -> np.ndarray:
        """Make and write vectors, and what a fine-tuned model predicts, in a format of the field's own.

        Args:
            model: A `LoadedModel`.
            source: The file that was embedded.
            out: Ends in one of `SAVES`.
            samples: n, as from `samples_from`.
            modality: Of the vectors.
            projected: As of `LoadedModel.embed`.

        Returns:
            (n, D) the vectors.
        """
        raise TypeError(f"{type(self).__name__} has no save_vectors")

    def target_names(self) -> list[str]:
        """Names of the labels; empty in pre-training."""
        return []

    def target_values(self, indices: np.ndarray) -> np.ndarray:
        """(n, tasks) labels in the file's own unit, NaN where missing.

        Args:
            indices: (n,) samples.
        """
        return np.zeros((len(indices), 0))

    def class_names(self) -> list[str]:
        """Names of classes, where the one label column holds words; labels then are their indices."""
        return []

    def baselines(self, target: Any) -> dict[str, Callable[..., np.ndarray]]:
        """Simple methods of the field, trained on the same training part.

        Called, each returns (n_test, outputs) predictions; called with indices of rows, those of the rows.

        Args:
            target: What is predicted; the numbers are in the form of its ``decode``.
        """
        return {}

    def evaluate(self, task: Any) -> tuple[dict[str, float], list[Any]]:
        """What the field measures of a pre-trained model on the test part, and the report's panels about it.

        Args:
            task: Trained.
        """
        return {}, []

    # What is the same everywhere ------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read once, split, and fit transforms unless they were loaded."""
        if self._ready:
            return
        try:
            self.splits = self.read()
        except DataError as error:
            error.where = error.where or self.path  # a split knows its items, not where they come from
            raise
        self._parts = {name: self.splits.indices(name) for name in ("train", "valid", "test")}
        if not len(self._parts["train"]):
            left_out = f" ({self.quarantine.summary()})" if len(self.quarantine) else ""
            raise DataError(
                f"no sample is left for training{left_out}",
                where=self.path,
                remedy="Use more data, or another way to split (--data.split)",
            )
        if not self._fitted:
            self.fit_transforms(self._parts["train"])
            if self._taken_over:
                self._lay_over(self._taken_over)
            self._fitted = True
        self.lengths()  # what it remarks on, items that are cut, belongs into the summary
        self._ready = True

    def extents(self) -> dict[str, int]:
        """By modality: ids that tokens may have, or columns of a row; what an embedder needs not know is left out."""
        return {}

    def require_room(self, encoders: Mapping[str, Any]) -> None:
        """Refuse embedders that do not know all the tokens, or that read other columns.

        Args:
            encoders: By modality.
        """
        for name, extent in self.extents().items():
            if name not in encoders:
                continue
            embedder = encoders[name].embedder
            room = embedder.extent
            if room and (extent > room or (embedder.is_table and extent != room)):
                what = "columns" if embedder.is_table else "tokens"
                raise RecipeError(
                    f"the data have {extent:,} {what}, the embedder of {name} is made for {room:,}",
                    where=f"model.encoders.{name}.embedder",
                    remedy="Give both the same number, in a recipe of your own or by options",
                )

    def use_splits(self, splits: Splits) -> None:
        """Take over a run's split, whatever the file holds by now.

        Args:
            splits: Of the run; every item must have one there.
        """
        self.splits = splits.select(self.splits.ids)
        self._parts = {name: self.splits.indices(name) for name in self._parts}

    def part(self, name: str) -> np.ndarray:
        """(n,) indices of the samples of a part.

        Args:
            name: train, valid or test.
        """
        return self._parts[name]

    def state_dict(self) -> dict[str, Any]:
        """What must be known to embed new items as these were."""
        return {"transforms": self.transforms_state()} if self._fitted else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a checkpoint's transforms.

        Args:
            state_dict: As made by `state_dict`.
        """
        if "transforms" in state_dict:
            self.load_transforms(state_dict["transforms"])
            self._fitted = True

    def take_over(self, state_dict: dict[str, Any]) -> None:
        """Start from another run's transforms; what it has none for is fitted to the training part.

        Args:
            state_dict: Of that run, as made by `state_dict`.
        """
        self._taken_over = dict(state_dict.get("transforms", {}))

    def take_tokenizer(self, modality: str, tokenizer: Any) -> None:
        """Make tokens of a modality with the tokenizer that came with pre-trained weights, not with one learnt here.

        Args:
            modality: Of the encoder that gets the weights.
            tokenizer: Theirs, a `TextTokenizer`.

        Raises:
            UsageError: Nobody writes this modality in letters.
        """
        raise UsageError(
            f"these weights read words, and {modality} holds none",
            where="--init_from",
            remedy="Name an encoder of texts: --init_from MODALITY=FOLDER",
        )

    def _lay_over(self, transforms: dict[str, Any]) -> None:
        """Transforms of another run in the place of those just fitted."""
        try:
            self.load_transforms({**self.transforms_state(), **transforms})
        except (LookupError, TypeError, ValueError) as error:
            raise UsageError(
                "what the run that this starts from knows of its data (tokens, means) does not go into the parts of "
                "this recipe",
                where="--init_from",
                remedy="Leave out options that choose other parts, such as --data.tokenizer",
            ) from error

    def loader(self, part: str | np.ndarray, *, shuffle: bool, dealt: bool = False) -> StatefulDataLoader:
        """Batches of a part.

        Args:
            part: train, valid or test; or (n,) indices of items, rising.
            shuffle: Whether to draw an order.
            dealt: Whether the processes of a run share them; otherwise each gets all.
        """
        rank, world = process_group() if dealt else (0, 1)
        indices = self.part(part) if isinstance(part, str) else part
        samples, order = self.ordered(indices, shuffle=shuffle, rank=rank, world=world)
        processes = 0 if self.THREADS else self.num_workers
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        return Loader(
            samples,
            batch_sampler=order,
            collate_fn=self.collate,
            num_workers=processes,
            generator=generator,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=processes > 0,
        )

    def ordered(self, indices: np.ndarray, *, shuffle: bool, rank: int, world: int) -> tuple[Dataset[Any], Passes]:
        """Samples of a part by their place in it, and the batches that they come in.

        Args:
            indices: (n,) of the part.
            shuffle: Whether to draw an order.
            rank: Of this process.
            world: Processes that share the batches.
        """
        order = BatchSampler(
            self.lengths()[indices],
            batch_size=max(min(self.batch_size, len(indices) // world), 1),
            token_budget=self.token_budget,
            shuffle=shuffle,
            seed=self.seed,
            rank=rank,
            world=world,
        )
        return Samples(partial(self._make_from, indices), len(indices)), order

    def _make_from(self, indices: np.ndarray, keys: list[Key]) -> list[Any]:
        return self.make_samples([Key(int(indices[key.index]), key.epoch) for key in keys])

    def train_dataloader(self) -> StatefulDataLoader:
        """Shuffled; leaves out what does not fill a batch."""
        loader = self.loader("train", shuffle=True, dealt=True)
        if self.trainer is not None:
            # Lightning gives a loader its saved position within a pass, but not the number of passes done.
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            loader.batch_sampler.set_epoch(progress.processed)
        return loader

    def val_dataloader(self) -> Any:
        """In the file's order; nothing if there is no validation part."""
        return self.loader("valid", shuffle=False, dealt=True) if len(self.part("valid")) else []

    def test_dataloader(self) -> Any:
        """In the file's order; nothing if there is no test part."""
        return self.loader("test", shuffle=False, dealt=True) if len(self.part("test")) else []

    def batches_from(self, items: Any, **reading: Any) -> Iterator[Batch]:
        """Batches of a user's own items, in their order, made one at a time.

        Args:
            items: What `samples_from` takes.
            reading: How a file is read; see `samples_from`.
        """
        samples = self.samples_from(items, **reading)
        size = self.batch_size
        return (self.collate(samples[i : i + size]) for i in range(0, len(samples), size))

    def summary(self) -> list[str]:
        """Lines that say what was read, announced, dropped and split."""
        name = Path(self.source or self.path).name
        lines = [f"{name}: {remark}" for remark in self.remarks]
        if len(self.notices):
            lines.append(f"{name}: worth knowing: {self.notices.summary()}")
        if len(self.quarantine):
            share = f"{len(self.quarantine):,} of {self.quarantine.num_read:,} rows left out"
            lines.append(f"{name}: {share}: {self.quarantine.summary()}")
        if self._ready and self.source in ("", self.path):
            lines.append(f"{name}: " + ", ".join(f"{count:,} {part}" for part, count in self.splits.counts().items()))
        return lines

    def num_rows(self) -> int:
        """Rows in the file; a guess from its size if only some were read (`limit`)."""
        read = self.quarantine.num_read
        a_row = 15 if self.path.endswith(".gz") else 60  # bytes
        return read if not self.limit or read < self.limit else max(read, Path(self.path).stat().st_size // a_row)

    def source_files(self) -> list[Path]:
        """Files that were read; their hashes go into the run folder."""
        return [Path(self.path)]

    def named_files(self) -> dict[str, Path]:
        """`source_files` by a name that says nothing of this machine: within a folder that was read, else their own."""
        root = Path(self.path)
        return {
            str(file.relative_to(root)) if root in file.parents else file.name: file for file in self.source_files()
        }


def _leave_signals_to_the_trainer(_: int) -> None:
    for number in STOPPING - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey_the_trainer, daemon=True).start()
    else:  # macOS does not say who sent a signal
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _obey_the_trainer() -> None:
    """End a worker when its trainer says so, and nobody else."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
