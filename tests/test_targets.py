"""Which weights become sparse, and why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gossamer
from gossamer import methods
from gossamer.errors import TargetError
from gossamer.targets import canonical, choose


def sparse(model: nn.Module, targets: object = None) -> list[str]:
    return [c.name for c in choose(model, targets) if c.sparse]  # type: ignore[arg-type]


def reasons(model: nn.Module, targets: object = None) -> dict[str, str]:
    return {c.name: c.reason for c in choose(model, targets)}  # type: ignore[arg-type]


class Text(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 50, bias=False)
        self.classifier = nn.Linear(16, 3)
        if tied:
            self.head.weight = self.embedding.weight


def test_default_takes_attention_and_leaves_norms_embeddings_and_heads() -> None:
    model = Text()
    assert sparse(model) == [
        "block.self_attn.in_proj_weight",
        "block.self_attn.out_proj.weight",
        "block.linear1.weight",
        "block.linear2.weight",
        "classifier.weight",
    ]
    why = reasons(model)
    assert why["embedding.weight"] == "embedding"
    assert why["head.weight"] == "vocabulary head"
    assert why["block.norm1.weight"].startswith("1-D")


def test_tied_weights_are_dense_and_listed_once() -> None:
    why = reasons(Text(tied=True))
    assert "head.weight" not in why
    assert why["embedding.weight"] == "embedding"
    layer = nn.Linear(4, 4)
    shared = nn.Sequential(layer, nn.Linear(4, 4))
    shared[1].weight = layer.weight
    shared.append(nn.Linear(4, 2))
    assert reasons(shared)["0.weight"] == "tied with 1.weight"
    assert sparse(shared) == ["2.weight"]
    assert sparse(shared, "*.weight") == ["0.weight", "2.weight"]


def test_advances_preset_is_appendix_b() -> None:
    convs = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 24, 1), nn.Flatten(),
        nn.Linear(24, 10),
    )  # fmt: skip
    assert sparse(convs, "advances") == ["1.weight", "3.weight", "5.weight"]
    assert reasons(convs, "advances")["0.weight"] == "3 input channels, not a multiple of 16"
    assert "classifier.weight" not in sparse(Text(), "advances")
    assert reasons(Text(), "advances")["classifier.weight"] == "task head"


def test_dctps_preset_is_every_convolution_and_linear_weight() -> None:
    convs = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=32), nn.LSTM(8, 8), nn.Linear(24, 10))
    assert sparse(convs, "dctps") == ["0.weight", "1.weight", "3.weight"]
    assert "head.weight" in sparse(Text(), "dctps")


def test_globs_types_and_exclusions() -> None:
    model = Text()
    assert sparse(model, "block.linear?.weight") == ["block.linear1.weight", "block.linear2.weight"]
    assert sparse(model, [nn.Embedding, "head.*"]) == ["embedding.weight", "head.weight"]
    assert "classifier.weight" not in sparse(model, ["!classifier.*"])
    assert "block.linear1.weight" in sparse(model, ["!classifier.*"])
    assert sparse(model, [nn.Linear, "!head.*", "!class*"]) == [
        "block.self_attn.out_proj.weight",
        "block.linear1.weight",
        "block.linear2.weight",
    ]


def test_a_module_type_covers_its_parts() -> None:
    names = ["block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight"]
    assert sparse(Text(), nn.MultiheadAttention) == names
    assert sparse(Text(), [nn.TransformerEncoderLayer]) == [*names, "block.linear1.weight", "block.linear2.weight"]


def test_expanded_and_inference_weights_cannot_be_sparse() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.randn(1, 4).expand(4, 4))
    assert sparse(model) == ["1.weight", "2.weight"]
    model[1].weight = nn.Parameter(torch.empty(4, 4, device="meta"))
    with pytest.raises(gossamer.GossamerError, match="materialise the model first"):
        gossamer.sparsify(model, methods.static(0.5))
    with torch.inference_mode():
        made = nn.Linear(4, 4)
    with pytest.raises(TargetError, match="match no weight"):
        gossamer.sparsify(made, methods.static(0.5))


def test_transposed_gpt2_layer_and_recurrent_cells() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nf = 6
            self.weight = nn.Parameter(torch.randn(4, 6))

    model = nn.ModuleDict({"c": Conv1D(), "gru": nn.GRU(4, 5, 2), "cell": nn.LSTMCell(4, 3)})
    assert sparse(model) == [
        "c.weight", "gru.weight_ih_l0", "gru.weight_hh_l0", "gru.weight_ih_l1", "gru.weight_hh_l1",
        "cell.weight_ih", "cell.weight_hh",
    ]  # fmt: skip


def test_frozen_parametrized_and_integer_parameters_stay_dense() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    model.register_parameter("table", nn.Parameter(torch.zeros(3, 3, dtype=torch.int32), requires_grad=False))
    why = reasons(model)
    assert why["0.weight"].startswith("frozen")
    assert why["table"].startswith("torch.int32")
    assert "computed by a parametrization" in why["1.parametrizations.weight.original1"]
    assert sparse(model) == ["2.weight"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("nothing.*", "target 'nothing.*' matches no parameter and is no preset"),
        ("advance", "did you mean 'advances'"),
        (["block.linear1.weigth"], "did you mean 'block.linear1.weight'"),
        ("*.bias", "1-D"),
        ([], "targets is empty"),
        ([3], "targets holds 3"),
        (5, "targets=5"),
        ("!*", "match no weight that can be sparse"),
    ],
)
def test_targets_that_cannot_work(targets: object, message: str) -> None:
    with pytest.raises(TargetError) as error:
        gossamer.sparsify(Text(), methods.static(0.5), targets=targets)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_model_without_a_target() -> None:
    with pytest.raises(TargetError, match="the default targets match no weight"):
        gossamer.sparsify(nn.LayerNorm(4), methods.static(0.5))


def test_canonical_names() -> None:
    assert canonical("module.a._orig_mod.b.weight") == "a.b.weight"
    assert canonical("_orig_mod.module.weight") == "weight"
    assert canonical("submodule.weight") == "submodule.weight"


def test_summary_lists_every_parameter_and_the_bytes() -> None:
    model = Text()
    table = gossamer.sparsify(model, methods.rewire(0.25)).summary()
    assert {row.name for row in table.rows} == dict(model.named_parameters()).keys()
    assert table.total == sum(p.numel() for p in model.parameters())
    assert table.active == round(0.25 * table.eligible)
    sparse_bytes = sum(row.bytes for row in table.rows if row.sparse)
    assert sparse_bytes == table.eligible * (4 + 4 + 1)  # weight, trainable weight, mask
    text = str(table)
    assert "dense: vocabulary head" in text
    assert f"{table.active:,}" in text
