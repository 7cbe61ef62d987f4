import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.data.window_order import SideBySide, WindowOrder, hashed, permute


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_depends_on_the_key_and_looks_shuffled() -> None:
    first, second = (permute(np.arange(10_000), 10_000, key) for key in (1, 2))
    assert (first != second).mean() > 0.99
    # neighbours in the order are no neighbours in the text
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(first, np.arange(10_000))[0, 1]) < 0.05


def test_permute_of_a_part_is_a_part_of_the_whole() -> None:
    whole = permute(np.arange(1000), 1000, 5)
    np.testing.assert_array_equal(permute(np.arange(300, 400), 1000, 5), whole[300:400])


def test_every_image_of_an_index_is_about_as_likely() -> None:
    images = [int(permute(np.array([0]), 8, key)[0]) for key in range(4000)]
    counts = np.bincount(images, minlength=8)
    # 500 expected each, standard deviation 21
    assert counts.min() > 400
    assert counts.max() < 600


def test_hashed_depends_on_order_and_sign() -> None:
    values = [hashed(0, 1), hashed(1, 0), hashed(0), hashed(0, 0), hashed(-1, 0)]
    assert len(set(values)) == len(values)


def whole(n_tokens: int) -> np.ndarray:
    return np.array([[0, n_tokens]])


def test_tiny_shakespeare_has_as_many_windows_as_session4_counts() -> None:
    assert WindowOrder(whole(1_115_394), 64, seed=0).n_windows == 17_427


@given(
    n_tokens=st.integers(2, 400),
    block_size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_an_epoch_is_one_pass_within_the_text(
    n_tokens: int, block_size: int, seed: int, epoch: int
) -> None:
    order = WindowOrder(whole(n_tokens), block_size, seed)
    if order.n_windows < 1:
        return
    starts = np.sort(order.starts(epoch, np.arange(order.n_windows)))
    assert 0 <= starts[0] < block_size  # the phase
    assert (np.diff(starts) == block_size).all()  # side by side, none twice
    assert starts[-1] + block_size + 1 <= n_tokens  # with the last target


def test_epochs_differ_in_phase_and_order() -> None:
    order = WindowOrder(whole(10_000), 50, seed=3)
    phases = {int(order.starts(epoch, np.arange(5)).min()) % 50 for epoch in range(20)}
    assert len(phases) > 10
    first, second = (order.starts(epoch, np.arange(100)) // 50 for epoch in (0, 1))
    assert (first != second).mean() > 0.9


@pytest.mark.parametrize("n_tokens", [0, 1, 7, 15])
def test_a_text_shorter_than_two_windows_has_none(n_tokens: int) -> None:
    assert WindowOrder(whole(n_tokens), 8, 0).n_windows < 1


def test_side_by_side_is_session4s_epoch() -> None:
    order = WindowOrder(whole(1_115_394), 64, seed=0, windows="side_by_side")
    assert (order.n_windows, order.n_windows // 32) == (17_427, 544)
    for epoch in (0, 1):
        starts = np.sort(order.starts(epoch, np.arange(17_427)))
        np.testing.assert_array_equal(starts, np.arange(17_427) * 64)


def test_every_offset_has_a_window_at_each_token() -> None:
    order = WindowOrder(whole(100), 8, seed=0, windows="every_offset")
    starts = order.starts(0, np.arange(order.n_windows))
    assert sorted(starts.tolist()) == list(range(92))  # 91 + 8 + 1 tokens are the whole text
    assert (order.starts(1, np.arange(92)) != starts).any()


def test_random_windows_are_uniform_with_replacement() -> None:
    order = WindowOrder(whole(100), 8, seed=0, windows="random")
    assert order.n_windows == 11
    starts = np.concatenate([order.starts(epoch, np.arange(11)) for epoch in range(4000)])
    counts = np.bincount(starts, minlength=92)
    assert len(counts) == 92
    # 478 expected each, standard deviation 22
    assert counts.min() > 370
    assert counts.max() < 590
    epochs = {tuple(order.starts(epoch, np.arange(11))) for epoch in range(50)}
    assert len(epochs) == 50
    assert any(len(set(epoch)) < 11 for epoch in epochs)


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6),
    block_size=st.integers(1, 12),
    windows=st.sampled_from(["pass", "side_by_side", "every_offset", "random"]),
    epoch=st.integers(0, 3),
)
def test_no_window_crosses_the_end_of_a_piece(
    lengths: list[int], block_size: int, windows: str, epoch: int
) -> None:
    ends = np.cumsum(np.array(lengths) + 5)
    pieces = np.stack([ends - lengths, ends], axis=1)  # with gaps of five tokens
    order = WindowOrder(pieces, block_size, 0, windows)  # type: ignore[arg-type]  # sampled
    if order.n_windows < 1:
        return
    starts = order.starts(epoch, np.arange(order.n_windows))
    inside = (starts[:, None] >= pieces[:, 0]) & (starts[:, None] + block_size < pieces[:, 1])
    assert inside.any(axis=1).all()
    if windows != "random":
        assert len(set(starts.tolist())) == len(starts)
    if windows == "every_offset":
        assert len(starts) == sum(max(0, length - block_size) for length in lengths)
    else:
        assert len(starts) == sum(max(0, length // block_size - 1) for length in lengths)


def test_windows_side_by_side_cover_pieces_from_their_starts() -> None:
    pieces = np.array([[0, 5], [5, 5], [7, 9], [20, 28]])
    windows = SideBySide(pieces, 4)
    assert windows[:].tolist() == [[0, 4], [4, 5], [7, 9], [20, 24], [24, 28]]
    assert windows[3:9].tolist() == [[20, 24], [24, 28]]
    assert windows[np.array([2, 0])].tolist() == [[7, 9], [0, 4]]
    assert len(windows) == 5


def test_windows_of_documents_are_each_seen_once_an_epoch() -> None:
    pieces = np.array([[0, 5], [5, 7], [7, 30]])
    order = WindowOrder(pieces, 4, seed=0, windows="documents")
    epochs = [order.bounds(epoch, np.arange(order.n_windows)).tolist() for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == SideBySide(pieces, 4)[:].tolist()
    assert epochs[0] != epochs[1]
