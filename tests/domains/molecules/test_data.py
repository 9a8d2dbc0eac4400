"""`MoleculeDataModule`: reading, splits, batches with missing modalities, new items, labels."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Descriptors

from polyfm.domains.molecules.data import MoleculeDataModule
from polyfm.domains.molecules.descriptors import DESCRIPTORS, DESCRIPTORS_2D
from polyfm.domains.molecules.sample import MoleculeSample
from polyfm.domains.molecules.synthetic import KINDS, write_synthetic
from polyfm.domains.molecules.transforms import SEP, BpeTokenizer
from polyfm.domains.molecules.vectors import dense_rows, fingerprints
from polyfm.shared.data.sampler import Key
from polyfm.shared.errors import DataError, RecipeError, UsageError

ALL = ["smiles", "properties", "graph"]


def module(path: Path, **settings: Any) -> MoleculeDataModule:
    data = MoleculeDataModule(str(path), **settings)
    data.setup()
    return data


def batch_of(data: MoleculeDataModule, n: int = 6) -> Any:
    return data.collate(data.make_samples([Key(i, 0) for i in range(n)]))


class TestReading:
    def test_scaffolds_are_not_cut(self, molecules: Path) -> None:
        data = module(molecules)
        assert data.splits.cut_groups() == []
        assert sum(data.splits.counts().values()) == 80
        assert data.remarks == ["smiles taken from column 'smiles'", "id taken from column 'id'"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_format_gives_the_same_batches(self, molecules: Path, tmp_path: Path, kind: str) -> None:
        expected = module(molecules)
        found = module(write_synthetic(tmp_path, kind=kind, n=80))
        assert sorted(found.table.smiles) == sorted(expected.table.smiles)
        assert found.splits.counts() == expected.splits.counts()

    def test_a_random_split_is_the_seed_s_and_keeps_a_molecule_on_its_side(self, molecules: Path) -> None:
        def parts(seed: int) -> np.ndarray:
            data = MoleculeDataModule(str(molecules), split="random")
            data.split_seed = seed
            data.setup()
            names: np.ndarray = data.splits.names
            return names

        assert (parts(1) == parts(1)).all()
        assert (parts(1) != parts(2)).any()

    def test_a_column_may_say_the_split(self, molecules: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(molecules)
        frame["fold"] = ["train"] * 50 + ["val"] * 20 + ["TEST"] * 10
        frame.to_csv(tmp_path / "x.csv", index=False)
        data = module(tmp_path / "x.csv", split="fold")
        assert data.splits.counts() == {"train": 50, "valid": 20, "test": 10}
        with pytest.raises(DataError, match="no column 'fould'; .* Did you mean 'fold'"):
            module(tmp_path / "x.csv", split="fould")

    def test_broken_rows_are_in_quarantine_and_the_rest_goes_on(self, molecules: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(molecules)
        frame.loc[[3, 7], "smiles"] = ["not one", ""]
        frame.to_csv(tmp_path / "x.csv", index=False)
        data = module(tmp_path / "x.csv")
        assert len(data.table) == 78
        assert [finding.row for finding in data.quarantine.items] == [4, 8]
        assert any("2 of 80 rows left out" in line for line in data.summary())

    def test_a_limit_reads_only_the_beginning(self, molecules: Path) -> None:
        data = MoleculeDataModule(str(molecules))
        data.limit = 40
        data.setup()
        assert len(data.table) == 40

    def test_long_smiles_are_cut_and_counted(self, molecules: Path) -> None:
        data = module(molecules, max_tokens=12)
        assert data.lengths().max() == 12
        cut = next(remark for remark in data.remarks if "tokens and are cut there" in remark)
        assert cut.endswith("SMILES have more than 12 tokens and are cut there (data.max_tokens)")
        assert any(cut in line for line in data.summary())
        batch = batch_of(data, 80)
        assert int(batch["smiles"].lengths.max()) == 12
        assert (batch["smiles"].ids[batch["smiles"].cu_seqlens[1:].long() - 1] == SEP).all()
        # The same file read as a new one says the same, whatever else is there.
        data.samples_from(molecules)
        assert cut in data.remarks

    def test_the_summary_tells_of_cut_smiles_before_any_loader_is_made_and_each_is_tokenised_once(
        self, molecules: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = MoleculeDataModule(str(molecules), max_tokens=12)
        encode, seen = data.tokenizer.encode, []
        monkeypatch.setattr(data.tokenizer, "encode", lambda smiles: (seen.extend(smiles), encode(smiles))[1])
        data.setup()
        assert any("are cut there (data.max_tokens)" in line for line in data.summary())
        data.lengths(), data.loader("train", shuffle=True)
        assert sorted(seen) == sorted(data.table.smiles)

    def test_an_empty_part_names_the_file_and_the_option(self, molecules: Path, tmp_path: Path) -> None:
        rings = pd.read_csv(molecules).assign(smiles=[f"c1ccccc1{'C' * i}" for i in range(80)])
        rings.to_csv(tmp_path / "x.csv", index=False)
        with pytest.raises(
            DataError, match=r"x.csv: the train split of 80 items is empty \(1 groups.*--data.split random"
        ):
            module(tmp_path / "x.csv")
        assert module(tmp_path / "x.csv", split="random").splits.counts()["train"] > 40

    def test_wrong_settings_are_refused(self, molecules: Path) -> None:
        with pytest.raises(
            RecipeError,
            match="no modality 'smile'. Choose from: smiles, properties, descriptors, fingerprint, features, graph, "
            "conformer, text, words, knowledge",
        ):
            MoleculeDataModule(str(molecules), modalities=["smile"])
        with pytest.raises(RecipeError, match="named twice"):
            MoleculeDataModule(str(molecules), targets=["activity", "activity"])
        with pytest.raises(DataError, match="no column 'activty'"):
            module(molecules, targets=["activty"])


class TestBatches:
    def test_all_modalities_of_all_molecules(self, molecules: Path) -> None:
        data = module(molecules, modalities=ALL, targets=["activity", "active"])
        batch = batch_of(data)
        assert batch.ids == data.table.ids[:6]
        assert batch["smiles"].rows.tolist() == list(range(6))
        assert batch["properties"].values.shape == (6, len(DESCRIPTORS))
        assert len(batch["graph"].cu_nodes) == 7
        np.testing.assert_allclose(batch.targets["labels"], data.table.targets[:6], rtol=1e-6)
        decoded = data.tokenizer.decode(batch["smiles"].ids[: int(batch["smiles"].cu_seqlens[1])].tolist())
        assert decoded == data.table.smiles[0]

    def test_what_a_molecule_lacks_is_left_out(self, molecules: Path) -> None:
        data = module(molecules, modalities=ALL)
        samples = data.make_samples([Key(i, 0) for i in range(4)])
        samples[1] = samples[1].replace(smiles=None)
        samples[2] = samples[2].replace(properties=None)
        batch = data.collate(samples)
        assert batch["smiles"].rows.tolist() == batch["graph"].rows.tolist() == [0, 2, 3]
        assert batch["properties"].rows.tolist() == [0, 1, 3]
        assert batch.present("smiles").tolist() == [True, False, True, True]
        assert len(set(batch.groups.tolist())) == 4

    @pytest.mark.parametrize("kept", [0, 2])
    def test_no_molecule_at_all_has_a_modality(self, molecules: Path, kept: int) -> None:
        data = module(molecules, modalities=ALL)
        samples = data.make_samples([Key(i, 0) for i in range(kept)])
        batch = data.collate([sample.replace(smiles=None, properties=None) for sample in samples])
        for name in ALL:
            assert len(batch[name].rows) == 0
        assert batch["properties"].values.shape == (0, 53)

    def test_one_molecule_under_two_names_is_one_group(self, molecules: Path) -> None:
        data = module(molecules)
        samples = data.samples_from(["CCO", "OCC", "CCN"])
        groups = data.collate(samples).groups.tolist()
        assert groups[0] == groups[1] != groups[2]

    def test_properties_are_scaled_by_the_training_part(self, molecules: Path) -> None:
        data = module(molecules, modalities=["properties"])
        train = data.collate(data.make_samples([Key(int(i), 0) for i in data.part("train")]))["properties"]
        weight = DESCRIPTORS.index("MolWt")
        assert float(train.values[:, weight].mean()) == pytest.approx(0, abs=1e-5)
        assert float(train.values[:, weight].std(correction=0)) == pytest.approx(1, abs=1e-4)

    def test_a_piecewise_tokenizer_is_an_option(self, molecules: Path) -> None:
        data = module(molecules, tokenizer=BpeTokenizer)
        ids = batch_of(data)["smiles"].ids
        assert int(ids.max()) < 300
        assert data.lengths().mean() < module(molecules).lengths().mean()


class TestState:
    def test_another_run_s_transforms_are_taken_over(self, molecules: Path, tmp_path: Path) -> None:
        first = module(molecules, modalities=["smiles", "properties"])
        second = MoleculeDataModule(str(write_synthetic(tmp_path, n=40, seed=9)), modalities=["smiles", "properties"])
        second.load_state_dict(first.state_dict())
        second.setup()
        np.testing.assert_array_equal(second.standardiser.mean, first.standardiser.mean)
        assert second.tokenizer.state() == first.tokenizer.state()

    def test_a_run_without_descriptors_cannot_lend_their_scales(self, molecules: Path) -> None:
        first = module(molecules, modalities=["smiles"])
        second = MoleculeDataModule(str(molecules), modalities=["properties"])
        with pytest.raises(DataError, match="no means and scales of the descriptors"):
            second.load_state_dict(first.state_dict())

    def test_the_state_loads_safely(self, molecules: Path, tmp_path: Path) -> None:
        for tokenizer in (MoleculeDataModule(str(molecules)).tokenizer.__class__, BpeTokenizer):
            data = module(molecules, modalities=["smiles", "properties"], tokenizer=tokenizer)
            torch.save(data.state_dict(), tmp_path / "state")
            assert torch.load(tmp_path / "state", weights_only=True) == data.state_dict()  # noqa: TID251


class TestNewItems:
    def test_strings_a_file_and_samples_are_the_same(self, molecules: Path) -> None:
        data = module(molecules, modalities=ALL)
        smiles = pd.read_csv(molecules)["smiles"].tolist()[:5]
        from_strings, from_file = data.samples_from(smiles), data.samples_from(molecules)[:5]
        assert [sample.smiles for sample in from_strings] == [sample.smiles for sample in from_file]
        np.testing.assert_array_equal(from_strings[2].properties, from_file[2].properties)
        assert data.samples_from(from_file) == from_file
        assert [sample.id for sample in from_file] == pd.read_csv(molecules)["id"].tolist()[:5]
        assert data.samples_from([]) == []
        for column in (np.array(smiles), pd.Series(smiles), iter(smiles)):
            assert [sample.smiles for sample in data.samples_from(column)] == [s.smiles for s in from_strings]
        with pytest.raises(DataError, match=r"None is no list of SMILES\. Give a path, or SMILES strings in a list"):
            data.samples_from(None)

    def test_strings_are_made_canonical(self, molecules: Path) -> None:
        data = module(molecules)
        assert [s.smiles for s in data.samples_from(["OCC", "C(C)O", "C[C@H](N)O"])] == ["CCO", "CCO", "CC(N)O"]
        assert module(molecules, isomeric=True).samples_from(["C[C@H](N)O"])[0].smiles == "C[C@H](N)O"

    def test_of_a_salt_the_largest_fragment(self, molecules: Path) -> None:
        data = module(molecules, largest_fragment=True)
        assert data.samples_from(["CCO.[Na+]"])[0].smiles == "CCO"

    @pytest.mark.parametrize(("item", "why"), [("hello", "'hello' is no molecule"), (7, "7 is no SMILES string")])
    def test_what_is_no_molecule_is_told_by_its_place(self, molecules: Path, item: Any, why: str) -> None:
        with pytest.raises(DataError, match=f"item 1: {why}"):
            module(molecules).samples_from(["CCO", item])

    def test_a_file_with_other_columns_is_guessed_anew(self, molecules: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(molecules).rename(columns={"smiles": "structure"})
        frame.to_csv(tmp_path / "train.csv", index=False)
        data = module(tmp_path / "train.csv", smiles="structure")
        assert len(data.samples_from(molecules)) == 80
        assert data.remarks[0] == "smiles taken from column 'smiles'"
        assert len(data.samples_from(tmp_path / "train.csv")) == 80

    def test_columns_of_the_training_file_are_taken_again_or_told_anew(self, molecules: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(molecules)[["id", "smiles"]].assign(drug="x", nr=[f"N{i}" for i in range(80)])
        train, other = frame.assign(drug=frame["smiles"], smiles="x"), frame.assign(name=[f"M{i}" for i in range(80)])
        train.to_csv(tmp_path / "train.csv", index=False)
        other.drop(columns=["id"]).to_csv(tmp_path / "other.csv", index=False)
        data = module(tmp_path / "train.csv", smiles="drug", id="nr")
        again = data.samples_from(tmp_path / "train.csv")
        assert [sample.id for sample in again] == frame["nr"].tolist()
        told = data.samples_from(tmp_path / "other.csv", smiles="smiles", id="name")
        assert [sample.id for sample in told] == other["name"].tolist()
        assert [sample.smiles for sample in told] == [sample.smiles for sample in again]
        assert data.remarks == []
        with pytest.raises(DataError, match="there is no column 'smile'; .* Did you mean 'smiles'"):
            data.samples_from(tmp_path / "other.csv", smiles="smile")
        with pytest.raises(DataError, match="other2.csv: there is no such file"):
            data.samples_from(tmp_path / "other2.csv")

    def test_the_id_of_an_sdf_file_is_taken_again(self, molecules: Path, tmp_path: Path) -> None:
        path = write_synthetic(tmp_path, kind="sdf", n=10)
        ids = module(path, id="activity", split="random").samples_from(path)
        assert all(float(sample.id.partition("#")[0]) for sample in ids)

    def test_what_is_about_reading_are_arguments_of_the_module(self) -> None:
        assert set(MoleculeDataModule.READING) <= set(inspect.signature(MoleculeDataModule).parameters)
        told = inspect.signature(MoleculeDataModule.read_new).parameters.values()
        assert {item.name for item in told if item.kind is item.KEYWORD_ONLY} == set(MoleculeDataModule.READING)


class TestLabels:
    def test_names_and_values_in_the_file_s_unit(self, molecules: Path) -> None:
        data = module(molecules, targets=["activity", "assay_amide"])
        frame = pd.read_csv(molecules)
        assert data.target_names() == ["activity", "assay_amide"]
        found = data.target_values(np.array([2, 5]))
        np.testing.assert_array_equal(found, frame[["activity", "assay_amide"]].to_numpy()[[2, 5]])

    def test_pre_training_has_none(self, molecules: Path) -> None:
        data = module(molecules)
        assert data.target_names() == []
        assert data.target_values(np.array([0, 1])).shape == (2, 0)
        assert batch_of(data).targets == {}


class TestTexts:
    MODALITIES = ["graph", "text", "knowledge"]

    def test_descriptions_become_tokens_and_neighbours(self, molecules: Path) -> None:
        data = module(molecules, modalities=self.MODALITIES, text_vocabulary=400)
        batch = batch_of(data)
        texts = pd.read_csv(molecules)["description"].tolist()
        ids = batch["text"].ids[: int(batch["text"].cu_seqlens[1])].tolist()
        assert data.text_tokenizer.decode(ids[1:]) == texts[0]
        assert len(batch["knowledge"].rows) > 0
        assert int(batch["facts"].triples[:, [0, 2]].max()) < batch["facts"].entities == len(data.knowledge)
        heads = {data.knowledge.molecules[i - len(data.knowledge.names)] for i in batch["facts"].triples[:, 0].tolist()}
        assert heads <= {data.table.smiles[i] for i in data.part("train")}

    def test_what_was_guessed_built_and_cut_is_said(self, molecules: Path) -> None:
        data = module(molecules, modalities=self.MODALITIES, text_vocabulary=400, max_text_tokens=12)
        said = "\n".join(data.summary())
        assert "text taken from column 'description'" in said
        assert "the knowledge graph links" in said
        assert "80 texts have more than 12 tokens and are cut there (data.max_text_tokens)" in said
        assert int(batch_of(data)["text"].lengths.max()) == 12
        assert "text taken" not in "\n".join(module(molecules).summary())

    def test_a_column_of_another_name_is_an_option(self, molecules: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(molecules).rename(columns={"description": "what it is"})
        frame.to_csv(tmp_path / "x.csv", index=False)
        data = module(tmp_path / "x.csv", modalities=self.MODALITIES, text="what it is", text_vocabulary=400)
        assert data.table.text == frame["what it is"].tolist()
        with pytest.raises(DataError, match="no column of descriptions was found.*--data.text COLUMN"):
            module(tmp_path / "x.csv", modalities=self.MODALITIES)

    def test_a_molecule_may_lack_its_text_and_a_text_its_molecule(self, molecules: Path, tmp_path: Path) -> None:
        frame = pd.read_csv(molecules)
        frame.loc[[1, 3], "description"] = None
        frame.to_csv(tmp_path / "x.csv", index=False)
        data = module(tmp_path / "x.csv", modalities=self.MODALITIES, text_vocabulary=400)
        assert batch_of(data)["text"].rows.tolist() == [0, 2, 4, 5]
        wanted = MoleculeSample(id="wish", group="", row=1, text="a phenol", targets={})
        batch = data.collate([wanted, *data.samples_from(["CCO"])])
        assert (batch["text"].rows.tolist(), batch["graph"].rows.tolist()) == ([0], [1])
        assert len(batch["facts"].rows) == 0

    def test_new_molecules_have_neighbours_but_no_text(self, molecules: Path) -> None:
        data = module(molecules, modalities=self.MODALITIES, text_vocabulary=400)
        smiles = [data.table.smiles[i] for i in data.part("train")[:5]]
        samples = data.samples_from(smiles)
        assert [sample.text for sample in samples] == [None] * 5
        for sample, place in zip(samples, data.part("train")[:5], strict=True):
            known = data.neighbours[place]
            assert (sample.neighbours is None) == (known is None)
            assert known is None or sample.neighbours.tolist() == known.tolist()
        from_file = data.samples_from(molecules)
        assert [sample.text for sample in from_file] == pd.read_csv(molecules)["description"].tolist()

    def test_tokenizer_and_graph_go_along_with_a_run(self, molecules: Path, tmp_path: Path) -> None:
        first = module(molecules, modalities=self.MODALITIES, text_vocabulary=400)
        torch.save(first.state_dict(), tmp_path / "state")
        state = torch.load(tmp_path / "state", weights_only=True)  # noqa: TID251
        second = MoleculeDataModule(
            str(write_synthetic(tmp_path, n=40, seed=9)), modalities=self.MODALITIES, text_vocabulary=400
        )
        second.load_state_dict(state)
        second.setup()
        assert second.state_dict() == first.state_dict()
        for lacking, what in (("text_tokenizer", "tokenizer of texts"), ("knowledge", "knowledge graph")):
            rest = {name: value for name, value in state["transforms"].items() if name != lacking}
            third = MoleculeDataModule(str(molecules), modalities=self.MODALITIES)
            with pytest.raises(DataError, match=f"the run that this starts from has no {what}"):
                third.load_state_dict({"transforms": rest})

    def test_batches_are_as_long_as_the_longest_of_smiles_and_text(self, molecules: Path) -> None:
        data = module(molecules, modalities=self.MODALITIES, text_vocabulary=400)
        texts = [len(ids) for ids in data.text_tokenizer.encode(data.table.text or [])]  # type: ignore[arg-type]
        assert (data.lengths() == np.maximum(module(molecules).lengths(), np.minimum(texts, 128))).all()


class TestVectors:
    """Rows of numbers for whole molecules and texts."""

    MODALITIES = ("smiles", "descriptors", "fingerprint", "features", "words")

    def data(self, path: Path, **settings: Any) -> MoleculeDataModule:
        return module(path, modalities=list(self.MODALITIES), text_vocabulary=300, **settings)

    def test_rows_are_those_of_rdkit_whichever_way_they_come(self, molecules: Path) -> None:
        data = self.data(molecules)
        batch = batch_of(data)
        counts = np.log1p(fingerprints(data.table.smiles[:6], counts=True))
        np.testing.assert_allclose(batch["fingerprint"].values.numpy(), counts, rtol=1e-6)
        weights = [Descriptors.MolWt(Chem.MolFromSmiles(text)) for text in data.table.smiles[:6]]
        ranked = batch["descriptors"].values[:, DESCRIPTORS_2D.index("MolWt")].numpy()
        assert (np.argsort(ranked, kind="stable") == np.argsort(weights, kind="stable")).all()
        both = torch.cat([batch["fingerprint"].values, batch["descriptors"].values], 1)
        assert torch.equal(batch["features"].values, both)
        for items in (data.make_samples([Key(i, 0) for i in range(6)]), molecules):
            again = data.collate(data.samples_from(items)[:6])
            for name in self.MODALITIES[1:]:
                assert torch.equal(again[name].values, batch[name].values), name
                assert torch.equal(again[name].known, batch[name].known), name

    def test_words_are_those_of_the_training_part_and_a_molecule_may_lack_them(
        self, molecules: Path, tmp_path: Path
    ) -> None:
        table = pd.read_csv(molecules)
        table.loc[3, "description"] = None
        table.to_csv(tmp_path / "some.csv", index=False)
        data = self.data(tmp_path / "some.csv", split="random")
        train = [data.table.text[i] or "" for i in data.part("train")]  # type: ignore[index]
        known = set(data.vectors.words.words)
        assert known <= {word for text in train for word in re.findall(r"\b\w\w+\b", text.lower())}
        samples = data.make_samples([Key(i, 0) for i in range(len(data.table))])
        lacking = [i for i, text in enumerate(data.table.text or []) if text is None]
        assert [
            i for i, numbers in enumerate(dense_rows([s.vectors for s in samples])) if "words" not in numbers
        ] == lacking
        assert len(lacking) == 1
        rows = data.collate(samples)["words"]
        assert rows.values.shape == (len(samples) - 1, 300)
        np.testing.assert_allclose(rows.values.norm(dim=1).numpy(), 1, rtol=1e-5)

    def test_undefined_descriptors_are_marked(self, molecules: Path) -> None:
        data = self.data(molecules)
        data._vector_table.parts["descriptors"][0, 3] = np.nan
        batch = batch_of(data)
        assert not batch["descriptors"].known[0, 3]
        assert not batch["features"].known[0, -len(DESCRIPTORS_2D) + 3]
        assert batch["descriptors"].known[1:].all()

    def test_what_was_learnt_goes_along_with_a_run(self, molecules: Path, tmp_path: Path) -> None:
        first = self.data(molecules)
        torch.save(first.state_dict(), tmp_path / "state")
        state = torch.load(tmp_path / "state", weights_only=True)  # noqa: TID251
        second = MoleculeDataModule(
            str(molecules), modalities=list(self.MODALITIES), text_vocabulary=300, split="random"
        )
        second.load_state_dict(state)
        second.setup()
        assert second.state_dict() == first.state_dict()
        for lacking, what in (("normal_scores", "ranks of the 2-D descriptors"), ("words", "weights of words")):
            rest = {name: value for name, value in state["transforms"].items() if name != lacking}
            third = MoleculeDataModule(str(molecules), modalities=list(self.MODALITIES))
            with pytest.raises(DataError, match=f"the run that this starts from has no {what}"):
                third.load_state_dict({"transforms": rest})

    def test_a_run_that_knew_no_descriptors_gives_its_tokens_and_the_rest_is_fitted(self, molecules: Path) -> None:
        other = module(molecules, tokenizer=BpeTokenizer)
        data = MoleculeDataModule(
            str(molecules), modalities=["smiles", "descriptors"], tokenizer=BpeTokenizer, split="random"
        )
        data.take_over(other.state_dict())
        data.setup()
        state, own = data.state_dict()["transforms"], other.state_dict()["transforms"]
        assert state["tokenizer"] == own["tokenizer"]
        alone = module(molecules, modalities=["descriptors"], split="random")
        assert state["normal_scores"] == alone.vectors.scores.state()

    def test_what_does_not_go_into_these_parts_is_said(self, molecules: Path) -> None:
        data = MoleculeDataModule(str(molecules))
        data.take_over({"transforms": {"tokenizer": {"letters": "none"}}})
        with pytest.raises(UsageError, match="does not go into the parts of this recipe"):
            data.setup()
