from typing import Any

import pytest
import torch
from small_methods import FACTS, ToyEncoder, small_method, small_vit, two_views, whole

from vergence.methods.catalog import METHODS
from vergence.methods.method import ReadsText
from vergence.methods.parts.backbones import EncoderConfig, build_encoder

SHARES: dict[str, set[str]] = {  # what of each block the text has for itself
    "attention": {"mlp", "norm1", "norm2", "ls2"},
    "ffn": {"attn", "norm1", "norm2", "ls1"},
    "ln": {"attn", "mlp", "ls1", "ls2"},
    "attention+ffn": {"norm1", "norm2"},
    "all": set(),
}
EMBEDDING = 258 * 8 + 12 * 8  # tokens and positions
# of a block of width 8
ATTENTION, FFN, LN = 3 * 8 * 8 + 3 * 8 + 8 * 8 + 8, 2 * 8 * 32 + 32 + 8, 2 * 2 * 8
LAST = 2 * 8


@pytest.mark.parametrize(
    ("share", "own"),
    [
        ("attention", 2 * (FFN + LN) + LAST),
        ("ffn", 2 * (ATTENTION + LN) + LAST),
        ("ln", 2 * (ATTENTION + FFN)),
        ("attention+ffn", 2 * LN + LAST),
        ("all", 0),
    ],
)
def test_shared_parameters_count_once_and_stand_once_in_the_state(share: str, own: int) -> None:
    method = small_method("shared_transformer", share=share)
    assert sum(p.numel() for p in method.text.parameters()) == EMBEDDING + own
    assert {name for block in method.text.blocks for name in block} == SHARES[share]
    assert len(method.state_dict()) == len({p.data_ptr() for p in method.state_dict().values()})


def test_all_shared_reads_a_text_as_the_blocks_of_the_image_would_with_a_causal_mask() -> None:
    method = small_method("shared_transformer", share="all")
    fields = two_views(4).fields
    vit: Any = method.encoder.backbone
    x, end = method.text.embedding(fields)
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    for block in vit.blocks:
        x = block(x, attn_mask=mask)
    expected = torch.stack([vit.norm(x)[i, place] for i, place in enumerate(end)])
    torch.testing.assert_close(method.text(vit, fields), expected)


@pytest.mark.parametrize("share", list(SHARES))
def test_the_gradient_of_a_shared_weight_is_the_sum_of_both_kinds(share: str) -> None:
    method, batch = small_method("shared_transformer", share=share), two_views(6)
    out = method(batch)
    cut = type(out)(*(x.detach().requires_grad_() for x in out))
    method.criterion(cut, (), whole(6)).loss.backward()
    weights = {name: p for name, p in method.encoder.named_parameters() if p.requires_grad}
    of_kind = {}
    for kind in ("z_bvd", "t_bd"):
        z = getattr(method(batch), kind)
        of_kind[kind] = torch.autograd.grad(
            z, list(weights.values()), getattr(cut, kind).grad, allow_unused=True
        )
    method.criterion(method(batch), (), whole(6)).loss.backward()
    for i, (name, weight) in enumerate(weights.items()):
        image, text = (of_kind[kind][i] for kind in ("z_bvd", "t_bd"))
        part = name.split(".")[3] if ".blocks." in f".{name}" else name.split(".")[1]
        is_block_part = ".blocks." in f".{name}"
        shared = part not in SHARES[share] if is_block_part else part == "norm" and share in ("ln", "all")
        assert (text is not None) == shared, name
        torch.testing.assert_close(weight.grad, image if text is None else image + text)


@pytest.mark.parametrize("share", list(SHARES))
def test_a_step_moves_every_weight_and_lowers_the_loss(share: str) -> None:
    method, batch = small_method("shared_transformer", share=share), two_views(6)
    before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(method.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        optimiser.zero_grad()
        loss = method.criterion(method(batch), (), whole(6)).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    still = [name for name, p in method.named_parameters() if name in before and torch.equal(p, before[name])]
    assert still == []


def test_what_a_text_has_for_itself_starts_anew() -> None:
    method = small_method("shared_transformer", share="ln")
    own, image = method.text.blocks[0]["attn"].qkv.weight, method.encoder.backbone.blocks[0].attn.qkv.weight
    assert own.shape == image.shape
    assert not torch.equal(own, image)
    assert own.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_vit_of_timm_learns_either_way_of_pooling(pool: Any) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(
        EncoderConfig(name="vit_tiny_patch16_224", patch_size=2, depth=1, pool=pool), image_size=4
    )
    config, cls = METHODS["shared_transformer"]
    method: Any = cls.build(config(embed_dim=5, context=12, share="ln"), encoder, FACTS)
    batch = two_views(4)
    loss = method.criterion(
        method(batch._replace(views=[view.float() for view in batch.views])), (), whole(4)
    ).loss
    loss.backward()
    assert [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert isinstance(method, ReadsText)


def test_other_encoders_are_refused_by_name() -> None:
    config, cls = METHODS["shared_transformer"]
    with pytest.raises(ValueError, match="shared_transformer needs a vision transformer of timm"):
        cls.build(config(), ToyEncoder(), FACTS)
    vit: Any = small_vit()
    vit.backbone.blocks[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match="this ViT has others"):
        cls.build(config(), vit, FACTS)
