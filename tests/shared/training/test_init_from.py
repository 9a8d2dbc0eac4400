"""Starting from what transformers wrote: outputs are theirs, reports are true, and nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import polyfm
from polyfm.domains.molecules.synthetic import write_synthetic
from polyfm.shared.backbones import block, causal, pooling, transformer
from polyfm.shared.backbones.conversion import KEY_MAPS
from polyfm.shared.backbones.encoder import Encoder
from polyfm.shared.cli.fit import start_from
from polyfm.shared.cli.main import main
from polyfm.shared.data import ragged
from polyfm.shared.data.batch import Grids, TokenIds
from polyfm.shared.errors import DataError, RecipeError, UsageError
from polyfm.shared.tokens import clip_patches, positions, text
from polyfm.shared.tokens.tokenizer import TextTokenizer
from polyfm.shared.training.init_from import FAMILIES, InitFrom, Pretrained
from polyfm.shared.training.recipe import find_recipe

VOCABULARY, END = 40, 39
LENGTHS = torch.tensor([5, 9, 2, 7])
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": END,
}
ROBERTA = {**BERT, "type_vocab_size": 1}
TOWER = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
CLIP = {
    "text_config": {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": 12, "eos_token_id": END, "bos_token_id": 0, "pad_token_id": 1},
    "vision_config": {**TOWER, "image_size": 12, "patch_size": 4},
    "projection_dim": 8,
}  # fmt: skip
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48, "max_position_embeddings": 16}  # fmt: skip
WIDE_CLIP = {**CLIP, "text_config": {**CLIP["text_config"], "hidden_act": "gelu"}, "vision_config": {**CLIP["vision_config"], "hidden_size": 48}}  # fmt: skip

# Class and config of transformers, the key map, and whether the model holds it under a prefix (models with heads).
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "Bert": ("BertModel", BERT, "bert"),
    "Bert with a head": ("BertForMaskedLM", BERT, "bert"),
    "Roberta": ("RobertaModel", ROBERTA, "roberta"),
    "Roberta with a head": ("RobertaForMaskedLM", ROBERTA, "roberta"),
    "XLMRoberta": ("XLMRobertaModel", ROBERTA, "roberta"),
    "Camembert": ("CamembertModel", ROBERTA, "roberta"),
    "Electra": ("ElectraModel", {**BERT, "embedding_size": 32}, "electra"),
    "DistilBert": ("DistilBertModel", DISTILBERT, "distilbert"),
    "DistilBert with a head": ("DistilBertForMaskedLM", DISTILBERT, "distilbert"),
    "CLIP: text": ("CLIPModel", CLIP, "clip_text"),
    "CLIP: images": ("CLIPModel", CLIP, "clip_vision"),
    "CLIP of two widths: text": ("CLIPModel", WIDE_CLIP, "clip_text"),
    "CLIP of two widths: images": ("CLIPModel", WIDE_CLIP, "clip_vision"),
    "CLIP's text alone": ("CLIPTextModelWithProjection", {**CLIP["text_config"], "projection_dim": 8}, "clip_text"),
    "CLIP's images alone": ("CLIPVisionModelWithProjection", {**CLIP["vision_config"], "projection_dim": 8}, "clip_vision"),
}  # fmt: skip


def theirs(name: str) -> Any:
    kind, config, _ = MODELS[name]
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    model = made(made.config_class(**config))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)  # large enough that every part matters
    return model.eval()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], tuple[Any, Path]]:
    def write(name: str) -> tuple[Any, Path]:
        model, folder = theirs(name), tmp_path / "their model"
        model.save_pretrained(folder)
        return model, folder

    return write


PARTS = {kind.__name__: kind for module in (block, causal, pooling, transformer, clip_patches, positions, text) for kind in vars(module).values() if isinstance(kind, type)}  # fmt: skip


def factory(spec: Any) -> Callable[..., Any]:
    """What jsonargparse makes of a part: its class with arguments, built once the width is known."""
    if isinstance(spec, str):
        return PARTS[spec]
    arguments = {key: factory(value) if isinstance(value, dict) else value for key, value in spec["init_args"].items()}
    return lambda *given: PARTS[spec["class_path"]](*given, **arguments)


def ours(tree: dict[str, Any], projection: int = 0) -> Encoder:
    made = {key: factory(value) for key, value in tree.items() if key != "width"}
    return Encoder(tree["width"], **made, projection=projection).eval()


def token_ids() -> tuple[Tensor, Tensor, TokenIds]:
    mask = torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]
    ids = torch.randint(2, END, mask.shape).masked_fill(torch.arange(mask.shape[1]) == LENGTHS[:, None] - 1, END)
    ids = ids.masked_fill(~mask, 1)
    return ids, mask, TokenIds(rows=torch.arange(len(ids)), ids=ids[mask], cu_seqlens=ragged.boundaries(LENGTHS))


def outputs(model: Any, encoder: Encoder, family: str) -> list[tuple[Tensor, Tensor]]:
    """Pairs of theirs and ours on the same input."""
    if family == "clip_vision":
        pixels = torch.randn(3, 3, 12, 12)
        found = encoder(Grids(rows=torch.arange(3), values=pixels, spacing=torch.ones(3, 2)))
        out = model.vision_model(pixel_values=pixels)
        image = model.visual_projection(out.pooler_output)
        return [(out.pooler_output, found.pooled), (nn.functional.normalize(image, dim=-1), found.projected)]
    ids, mask, batch = token_ids()
    found = encoder(batch)
    if family == "clip_text":
        out = model.text_model(input_ids=ids, attention_mask=mask.long())
        words = model.text_projection(out.pooler_output)
        return [
            (out.last_hidden_state[mask], found.tokens.pack().x),
            (out.pooler_output, found.pooled),
            (nn.functional.normalize(words, dim=-1), found.projected),
        ]
    body = getattr(model, model.base_model_prefix, model)
    hidden = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return [(hidden[mask], found.tokens.pack().x), (hidden[:, 0], found.pooled)]


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_theirs(written: Callable[[str], tuple[Any, Path]], name: str) -> None:
    model, folder = written(name)
    family = MODELS[name][2]
    source = Pretrained(folder)
    encoder = ours(source.encoder(family), projection=8 if "clip" in family else 0)
    report = source.load_into(encoder, what="encoder", at_least=1.0)
    assert "(100% of the numbers), 0 missing" in report
    assert report.endswith("0 of another shape")
    for expected, found in outputs(model, encoder, family):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if "head" not in name])
def test_ours_becomes_theirs(name: str) -> None:
    """Random weights of ours, reverted, load into their model, which then computes what ours does."""
    model, family = theirs(name), MODELS[name][2]
    tree = Pretrained.__new__(Pretrained)
    tree.config, tree.path = json.loads(model.config.to_json_string(use_diff=False)), Path("x")
    encoder = ours(tree.encoder(family), projection=8 if "clip" in family else 0)
    torch.manual_seed(1)
    for key, parameter in encoder.named_parameters():
        nn.init.normal_(parameter, std=0.2) if key != "projection.bias" else nn.init.zeros_(parameter)
    state, left = KEY_MAPS[family].revert(encoder.state_dict())
    assert left == []
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    other_tower = ("vision_", "visual_", "logit_") if family == "clip_text" else ("text_", "logit_")
    assert all(key.startswith(("pooler.", *other_tower)) for key in missing)
    for theirs_, found in outputs(model, encoder, family):
        torch.testing.assert_close(found, theirs_, atol=1e-5, rtol=1e-5)
    again, _ = KEY_MAPS[family].convert(state)
    assert again.keys() == encoder.state_dict().keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in encoder.state_dict().items())


class TestReport:
    def test_what_has_no_counterpart_is_counted(self, written: Callable[[str], tuple[Any, Path]]) -> None:
        _, folder = written("Bert")
        encoder = ours(Pretrained(folder).encoder("bert"), projection=4)
        report = Pretrained(folder).load_into(encoder, what="text from there")
        assert report.startswith(
            "text from there: 36 tensors loaded (99% of the numbers), 2 missing, 2 unexpected, 0 of"
        )

    def test_too_little_fails_and_changes_nothing_unless_told_otherwise(
        self, written: Callable[[str], tuple[Any, Path]]
    ) -> None:
        _, folder = written("Bert")
        tree = Pretrained(folder).encoder("bert")
        tree["embedder"]["init_args"]["vocabulary"] = 2 * VOCABULARY
        encoder = ours(tree)
        before = {key: tensor.clone() for key, tensor in encoder.state_dict().items()}
        with pytest.raises(
            DataError, match="1 of another shape; for example embedder.table.weight; at least 90%"
        ) as no:
            Pretrained(folder).load_into(encoder, what="text")
        assert "--init_at_least" in str(no.value)
        assert all(torch.equal(tensor, before[key]) for key, tensor in encoder.state_dict().items())
        assert "1 of another shape" in Pretrained(folder).load_into(encoder, what="text", at_least=0.5)
        assert torch.equal(encoder.embedder.table.weight, before["embedder.table.weight"])


class TestFolder:
    def test_what_a_user_writes(self, tmp_path: Path) -> None:
        assert InitFrom.of("runs/a") == InitFrom(Path("runs/a"))
        assert InitFrom.of("text=models/bert", 0.5) == InitFrom(Path("models/bert"), "text", 0.5)
        (tmp_path / "a=b").mkdir()
        assert InitFrom.of(str(tmp_path / "a=b")).path == tmp_path / "a=b"
        with pytest.raises(UsageError, match="--init_at_least is a share from 0 to 1, not 2"):
            InitFrom.of("x", 2)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ("{", "this is no config.json of transformers"),
            ("[1]", "this is no config.json of transformers"),
            ("[" * 100_000, "this is no config.json of transformers"),
            ('{"model_type": "t5"}', "there is no key map for model_type 't5'. Known: bert, roberta"),
            ('{"model_type": {"a": 1}}', "there is no key map"),
            ('{"model_type": "bert"}', "lacks or misstates 'hidden_size'"),
            ('{"model_type": "bert", "hidden_size": []}', "hidden_size must be a whole number from 1 to 1,048,576"),
            (json.dumps({**BERT, "model_type": "bert", "hidden_size": -32}), "from 1 to 1,048,576, not -32"),
            (json.dumps({**BERT, "model_type": "bert", "vocab_size": 10**12}), "vocab_size must be a whole number"),
            (json.dumps({**BERT, "model_type": "bert", "num_hidden_layers": "2"}), "from 1 to 1,048,576, not '2'"),
            (json.dumps({**BERT, "model_type": "bert", "layer_norm_eps": "a"}), "lacks or misstates"),
            (json.dumps({**BERT, "model_type": "bert", "hidden_act": "swish"}), "no activation 'swish'"),
            (json.dumps({**BERT, "model_type": "electra", "embedding_size": 8}), "embeddings of another width"),
            (
                json.dumps({**BERT, "model_type": "bert", "position_embedding_type": "relative_key"}),
                "absolute positions",
            ),
        ],
    )
    def test_a_config_that_does_not_fit_is_one_error(self, tmp_path: Path, config: str, message: str) -> None:
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "model.safetensors").touch()
        with pytest.raises(DataError) as error:
            Pretrained(tmp_path).encoder("bert")
        assert message in str(error.value)
        assert str(tmp_path) in str(error.value) or "here" in str(error.value)

    def test_weights_come_from_safetensors_only(self, written: Callable[[str], tuple[Any, Path]]) -> None:
        _, folder = written("Bert")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(DataError, match="there is no model.safetensors. Weights are read from this file only"):
            Pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
        with pytest.raises(DataError, match="this is not a file of weights"):
            Pretrained(folder).load_into(nn.Linear(1, 1), what="x")

    def test_code_that_a_config_names_is_not_looked_at(self, written: Callable[[str], tuple[Any, Path]]) -> None:
        _, folder = written("Bert")
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "evil.Model"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text("raise SystemExit('code of a checkpoint ran')")
        encoder = ours(Pretrained(folder).encoder("bert"))
        assert "100%" in Pretrained(folder).load_into(encoder, what="x")

    def test_every_family_has_a_map(self) -> None:
        assert {family for families in FAMILIES.values() for family in families} <= set(KEY_MAPS)


class TestRecipe:
    TREE = {"model": {"encoders": {"words": {"width": 8, "embedder": "TextTokens", "backbone": "Transformer", "projection": 5}}}}  # fmt: skip

    def test_the_encoder_gets_their_shape_and_keeps_its_projection(
        self, written: Callable[[str], tuple[Any, Path]]
    ) -> None:
        _, folder = written("Roberta")
        for source in (str(folder), f"words={folder}"):
            encoder = start_from(source, self.TREE)["model"]["encoders"]["words"]
            assert (encoder["width"], encoder["projection"]) == (32, 5)
            assert encoder["embedder"]["init_args"]["positions"]["init_args"]["maximum"] == 14
            assert encoder["backbone"]["init_args"]["block"]["init_args"]["eps"] == 1e-5
        assert self.TREE["model"]["encoders"]["words"]["width"] == 8

    def test_images_start_from_the_encoder_of_images(self, written: Callable[[str], tuple[Any, Path]]) -> None:
        _, folder = written("CLIP: text")
        tree = {"model": {"encoders": {"words": {"embedder": "TextTokens"}, "pictures": {"embedder": "PatchTokens"}}}}
        started = start_from(f"pictures={folder}", tree)["model"]["encoders"]
        assert started["pictures"]["embedder"]["class_path"] == "ClipPatches"
        assert started["words"] == {"embedder": "TextTokens"}
        started = start_from(f"words={folder}", tree)["model"]["encoders"]
        assert started["words"]["backbone"]["class_path"] == "CausalTransformer"
        with pytest.raises(UsageError, match="which of them starts from this.* Say --init_from words="):
            start_from(folder, tree)
        with pytest.raises(UsageError, match="the recipe has encoders for words, pictures"):
            start_from(f"sounds={folder}", tree)


TINY = """\
data: {batch_size: 16}
model: {hidden: 8}
trainer: {max_epochs: 1, enable_progress_bar: false, enable_model_summary: false}
"""


def test_fit_starts_from_a_folder_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
    config = {**ROBERTA, "vocab_size": 300, "max_position_embeddings": 514}
    transformers.RobertaForMaskedLM(transformers.RobertaConfig(**config)).save_pretrained(tmp_path / "theirs")
    TextTokenizer(300).fit(["CCO"])._fitted.save(str(tmp_path / "theirs" / "tokenizer.json"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = [
        "fit",
        "molecules/property",
        "--size",
        "small",
        "--config",
        tmp_path / "tiny.yaml",
        "--out",
        tmp_path / "run",
    ]
    words += ["--data.path", write_synthetic(tmp_path, n=60), "--data.targets", "activity", "--init_from", tmp_path / "theirs"]  # fmt: skip
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert f"smiles from {tmp_path / 'theirs'}: 36 tensors loaded (100% of the numbers), 0 missing" in said.out
    capsys.readouterr()
    words[words.index(tmp_path / "run")] = tmp_path / "other"
    assert main([*map(str, words), "--model.encoders.smiles.width", "16"]) == DataError.exit_code
    assert "of another shape; for example" in capsys.readouterr().err
    assert polyfm.load(tmp_path / "run").embed(["CCO"]).shape == (1, 32)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "molecule", "is", "a", "member", "of", "class", "."]


@pytest.fixture
def bert_with_words(tmp_path: Path) -> Path:
    """Weights and tokenizer as transformers saves both."""
    folder = tmp_path / "their bert"
    config = {**BERT, "vocab_size": len(WORDS), "max_position_embeddings": 130}
    transformers.BertModel(transformers.BertConfig(**config)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


class TestTokenizer:
    """Weights of a language model come with its tokens."""

    def test_ids_of_special_tokens_go_into_the_recipe(self, bert_with_words: Path) -> None:
        recipe = find_recipe("molecules/molfm")
        tree = start_from(f"text={bert_with_words}", recipe.sized("small"))
        mask = tree["model"]["objectives"]["mask"]["init_args"]
        assert (mask["mask_id"], mask["specials"]) == (4, 4)
        assert tree["model"]["encoders"]["text"]["embedder"]["init_args"]["vocabulary"] == len(WORDS)
        assert "mask_id" not in recipe.sized("small")["model"]["objectives"]["mask"]["init_args"]

    def test_fit_makes_tokens_with_it_and_the_run_keeps_it(
        self, bert_with_words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_synthetic(tmp_path, n=40)
        words = f"fit molecules/molfm --size small --out {tmp_path / 'run'} --data.path {path} --data.batch_size 8"
        quiet = "--trainer.max_steps 1 --trainer.enable_progress_bar false"
        widths = " ".join(f"--model.encoders.{name}.width 32" for name in ("graph", "knowledge"))
        code = main(
            [*f"{words} {quiet} {widths} --model.fusion.width 32".split(), "--init_from", f"text={bert_with_words}"]
        )
        said = capsys.readouterr()
        assert code == 0, said.err
        assert "text from" in said.out
        run = polyfm.load(tmp_path / "run")
        theirs = transformers.BertTokenizerFast(str(bert_with_words / "vocab.txt"))
        text = "The molecule is a member of the class of phenols."
        assert run.data.encode_text(text).tolist() == theirs(text)["input_ids"]
        assert run.data.text_tokenizer.given

    def test_weights_without_tokens_are_refused(self, written: Callable[[str], tuple[Any, Path]]) -> None:
        _, folder = written("Bert")
        with pytest.raises(DataError, match="neither tokenizer.json nor vocab.txt"):
            start_from(f"text={folder}", find_recipe("molecules/molfm").sized("small"))

    def test_molecules_are_read_by_the_tokenizer_of_a_model_of_molecules(
        self, bert_with_words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As of ChemBERTa: its ids are not ours."""
        (bert_with_words / "vocab.txt").write_text("\n".join([*WORDS[:5], *"cnoCNOSPF()=[]123+-", "##C", "##c"]) + "\n")
        (bert_with_words / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        config = {**BERT, "vocab_size": 26, "max_position_embeddings": 256}
        transformers.BertModel(transformers.BertConfig(**config)).save_pretrained(bert_with_words)
        path = write_synthetic(tmp_path, n=60)
        words = (
            f"fit molecules/property --size small --out {tmp_path / 'run'} --data.path {path} --data.targets activity"
        )
        quiet = "--trainer.max_steps 1 --trainer.enable_progress_bar false"
        assert main([*f"{words} {quiet}".split(), "--init_from", str(bert_with_words)]) == 0, capsys.readouterr().err
        theirs = transformers.BertTokenizerFast(str(bert_with_words / "vocab.txt"), do_lower_case=False)
        run = polyfm.load(tmp_path / "run")
        assert run.data.encode("CC(=O)N").tolist() == theirs("CC(=O)N")["input_ids"]
        assert np.isfinite(run.embed(["CC(=O)N"])).all()
        after = (
            f"fit molecules/property --size small --out {tmp_path / 'after'} --data.path {path} --data.targets activity"
        )
        assert main([*f"{after} {quiet}".split(), "--init_from", str(tmp_path / "run")]) == 0, capsys.readouterr().err
        assert polyfm.load(tmp_path / "after").data.encode("CC(=O)N").tolist() == theirs("CC(=O)N")["input_ids"]

    def test_a_tokenizer_with_more_tokens_than_the_weights_is_refused(
        self, bert_with_words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (bert_with_words / "vocab.txt").write_text("\n".join([*WORDS, "more"]) + "\n")
        path = write_synthetic(tmp_path, n=40)
        words = (
            f"fit molecules/property --size small --out {tmp_path / 'run'} --data.path {path} --data.targets activity"
        )
        assert main([*words.split(), "--init_from", str(bert_with_words)]) == DataError.exit_code
        assert "this tokenizer knows 14 tokens, the weights 13" in capsys.readouterr().err

    def test_an_encoder_wider_than_the_fusion_is_refused(
        self, bert_with_words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_synthetic(tmp_path, n=40)
        words = f"fit molecules/molfm --size small --out {tmp_path / 'run'} --data.path {path}"
        assert main([*words.split(), "--init_from", f"text={bert_with_words}"]) == RecipeError.exit_code
        assert "expected 32, the width of the text encoder that it joins, not 64" in capsys.readouterr().err

    def test_what_reads_no_tokens_is_given_no_tokenizer(self, bert_with_words: Path) -> None:
        encoder = nn.Module()
        encoder.embedder = nn.Linear(1, 1)
        Pretrained(bert_with_words).hand_tokenizer(None, "image", encoder)
        tree = {"model": {"encoders": {"words": {"embedder": "TextTokens"}}, "objectives": {"next": "CausalLM"}}}
        assert start_from(bert_with_words, tree)["model"]["objectives"] == {"next": "CausalLM"}


def test_generation_starts_from_an_aligned_run_and_brings_its_own_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MolFM's second recipe from its first: three encoders, the fusion, tokenizer and graph; SMILES are its own."""
    path = write_synthetic(tmp_path, n=40)
    quiet = "--data.batch_size 8 --trainer.max_steps 1 --trainer.enable_progress_bar false --size small"
    assert main(f"fit molecules/molfm --data.path {path} --out {tmp_path / 'a'} {quiet}".split()) == 0
    capsys.readouterr()
    more = f"--init_from {tmp_path / 'a'} --out {tmp_path / 'b'}"
    code = main(f"fit molecules/molfm_generation --data.path {path} {quiet} {more}".split())
    said = capsys.readouterr()
    assert code == 0, said.err
    for part in ("graph", "text", "knowledge", "fusion"):
        assert f"{part} from {tmp_path / 'a'}" in said.out
    assert "smiles from" not in said.out
    first, second = polyfm.load(tmp_path / "a"), polyfm.load(tmp_path / "b")
    assert second.data.text_tokenizer.state() == first.data.text_tokenizer.state()
    assert second.data.knowledge.state() == first.data.knowledge.state()


def test_labels_are_learnt_from_an_aligned_run_with_its_atoms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The features of atoms are the run's, whatever the recipe says; of a fusion there is no word."""
    monkeypatch.setattr("polyfm.domains.molecules.baselines.TREES", 2)
    path = write_synthetic(tmp_path, n=60)
    quiet = "--data.batch_size 8 --trainer.max_steps 1 --trainer.enable_progress_bar false --size small"
    assert main(f"fit molecules/molfm --data.path {path} --out {tmp_path / 'a'} {quiet}".split()) == 0
    capsys.readouterr()
    more = f"--data.targets activity --init_from {tmp_path / 'a'} --out {tmp_path / 'b'}"
    code = main(f"fit molecules/graph_property --data.path {path} {quiet} {more}".split())
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "graph from" in said.out
    assert "fusion from" not in said.out
    assert polyfm.load(tmp_path / "b").data.fields == "gin"
