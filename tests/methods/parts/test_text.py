import torch
from torch import Tensor

from vergence.methods.parts.text import TextTransformer, tokens

START, END = 256, 257  # beside the bytes


def fields(*texts: str, wider: int = 0) -> dict[str, Tensor]:
    data = [text.encode() for text in texts]
    length = torch.tensor([len(each) for each in data])
    rows = [list(each) + [0] * (int(length.max()) + wider - len(each)) for each in data]
    return {"text": torch.tensor(rows, dtype=torch.uint8), "text.length": length}


def transformer() -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(width=8, layers=2, heads=2, context=9, vocabulary=256).double()


def test_a_text_is_its_bytes_between_start_and_end() -> None:
    ids, end = tokens(fields("ab", "", "hé"), 9, 256)
    assert ids.tolist() == [
        [START, 97, 98, END, END],
        [START, END, END, END, END],
        [START, 104, 195, 169, END],
    ]
    assert end.tolist() == [3, 1, 4]


def test_start_and_end_are_the_first_two_numbers_beyond_the_vocabulary() -> None:
    words = {"text": torch.tensor([[299, 7]], dtype=torch.int32), "text.length": torch.tensor([2])}
    ids, _ = tokens(words, 9, 300)
    assert ids.tolist() == [[300, 299, 7, 301]]
    read = TextTransformer(width=8, layers=1, heads=2, context=9, vocabulary=300)
    assert read.embedding.tokens.num_embeddings == 302
    assert read(words).shape == (1, 8)


def test_a_long_text_is_cut_and_still_has_an_end() -> None:
    ids, end = tokens(fields("abcdef", "a"), 5, 256)
    assert ids.tolist() == [[START, 97, 98, 99, END], [START, 97, END, END, END]]
    assert end.tolist() == [4, 2]


def test_texts_without_a_byte_have_an_end() -> None:
    ids, end = tokens(
        {"text": torch.zeros(2, 0, dtype=torch.uint8), "text.length": torch.zeros(2).long()}, 9, 256
    )
    assert ids.tolist() == [[START, END]] * 2
    assert end.tolist() == [1, 1]


def test_what_a_text_says_depends_neither_on_padding_nor_on_the_others() -> None:
    read = transformer()
    h = read(fields("abc", "a longer one"))
    torch.testing.assert_close(read(fields("abc")), h[:1])
    torch.testing.assert_close(read(fields("abc", wider=3)), h[:1])
    torch.testing.assert_close(read(fields("a longe")), h[1:])  # cut to the context
    assert (read(fields("abd")) - h[:1]).norm() > 1e-3
    assert (read(fields("bac")) - h[:1]).norm() > 1e-3


def test_no_token_sees_what_comes_after_it() -> None:
    """The gradient of what is said at place 2 reaches the positions up to 2 only."""
    read = transformer()
    x = read.embedding(fields("abcdefg"))[0].detach().requires_grad_()
    y = x
    for block in read.blocks:
        y = block(y, is_causal=True)
    y[0, 2].square().sum().backward()
    assert x.grad is not None
    reached = x.grad[0].norm(dim=1)
    assert (reached[:3] > 0).all()
    assert (reached[3:] == 0).all()
