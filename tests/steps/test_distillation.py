"""The distillation loss, compared with hand-written sums, and the teachers that it learns from."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptlit.checkpoints import init_from
from gptlit.checkpoints.init_from import Origin
from gptlit.data.loaders import IGNORED
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.steps import distillation, losses
from gptlit.steps.distillation import Teachers, divergence, hash_of
from gptlit.steps.losses import objective
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer

V = 5
TARGETS = torch.tensor([[1, IGNORED, 4], [0, 2, 2]])
SCORED = [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]


def gpt(seed: int, block_size: int = 8, n_embd: int = 8) -> GPT:
    """A small net whose predictions differ clearly from a uniform guess."""
    torch.manual_seed(seed)
    config = GPTConfig(V, n_layer=1, n_head=2, n_embd=n_embd, block_size=block_size, dropout=0.5)
    net = GPT(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0, 0.7)
    return net


def teachers(*nets: GPT, temperature: float = 1.0) -> Teachers:
    hashes = [hash_of(net.state_dict()) for net in nets]
    return Teachers(nets, hashes, temperature=temperature)


def student_logits() -> Tensor:
    torch.manual_seed(3)
    return (2 * torch.randn(2, 3, V, dtype=torch.float64)).requires_grad_()


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def mean_softmax(all_logits: list[Tensor], at: tuple[int, int], temperature: float) -> list[float]:
    each = [softmax(logits[at].tolist(), temperature) for logits in all_logits]
    return [sum(values) / len(values) for values in zip(*each, strict=True)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("n_teachers", [1, 3])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_and_gradient_by_hand(temperature: float, n_teachers: int, weight: float) -> None:
    """(1 - w) CE + w T^2 KL; its gradient is (1 - w) (q - onehot) + w T (q_T - p_T), over n."""
    inputs = torch.tensor([[0, 1, 4], [2, 0, 2]])
    nets = [gpt(seed).double() for seed in range(n_teachers)]
    taught = teachers(*nets, temperature=temperature)
    all_logits = [net(inputs) for net in nets]
    student = student_logits()
    distilled = taught.divergence(student, inputs, TARGETS)
    minimised, plain = objective(student, TARGETS, distilled=distilled, distill_weight=weight)
    cross_entropy, divergence_, gradient = 0.0, 0.0, torch.zeros_like(student)
    for at in SCORED:
        target, row = int(TARGETS[at]), student[at].tolist()
        p, q = mean_softmax(all_logits, at, temperature), softmax(row, temperature)
        cross_entropy -= math.log(softmax(row, 1)[target]) / len(SCORED)
        divergence_ += sum(
            a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)
        ) / len(SCORED)
        for id_ in range(V):
            hard = softmax(row, 1)[id_] - (id_ == target)
            soft = temperature * (q[id_] - p[id_])
            gradient[(*at, id_)] = ((1 - weight) * hard + weight * soft) / len(SCORED)
    assert distilled.item() == pytest.approx(temperature**2 * divergence_, rel=1e-12)
    assert plain.item() == pytest.approx(cross_entropy, rel=1e-12)
    wanted = (1 - weight) * cross_entropy + weight * temperature**2 * divergence_
    assert minimised.item() == pytest.approx(wanted, rel=1e-12)
    (found,) = torch.autograd.grad(minimised, student)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-14)


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    """For large T it tends to (z - v) / V, without the means of both (Hinton et al. 2015, 2.1)."""
    student = student_logits()
    torch.manual_seed(4)
    taught = 2 * torch.randn_like(student)
    loss = divergence(student, (taught / 1e4).softmax(-1), TARGETS, 1e4)
    (found,) = torch.autograd.grad(loss, student)
    difference = student - taught
    wanted = (difference - difference.mean(-1, keepdim=True)) / V / len(SCORED)
    torch.testing.assert_close(
        found, wanted * (TARGETS != IGNORED)[..., None], rtol=1e-2, atol=1e-5
    )


def test_a_student_that_agrees_has_no_loss() -> None:
    student = student_logits()
    loss = divergence(student, (student / 2).softmax(-1).detach(), TARGETS, 2)
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-15
    assert gradient.abs().max() < 1e-15


def test_label_smoothing_belongs_to_the_text_and_z_loss_to_both() -> None:
    student = student_logits()
    distilled = torch.tensor(0.7)
    smoothed, _ = objective(student, TARGETS, label_smoothing=0.1)
    z = objective(student, TARGETS, z_loss=0.01)[0] - objective(student, TARGETS)[0]
    for weight in (0.0, 0.25, 1.0):
        found, plain = objective(student, TARGETS, 0.1, 0.01, distilled, weight)
        wanted = (1 - weight) * smoothed + weight * 0.7 + z
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
        assert plain.item() == objective(student, TARGETS)[0].item()
        assert not plain.requires_grad


def test_half_precision_is_computed_in_float32() -> None:
    student, inputs = student_logits().detach(), torch.tensor([[0, 1, 4], [2, 0, 2]])
    half = student.bfloat16()
    one, other = (teachers(gpt(0)).divergence(x, inputs, TARGETS) for x in (half, half.float()))
    assert one.dtype == torch.float32
    assert one.item() == other.item()
    assert teachers(gpt(0).bfloat16()).probabilities(inputs).dtype == torch.float32


@pytest.mark.parametrize("compiles", [False, True])
def test_the_objective_of_a_batch(compiles: bool) -> None:
    """It is that of `objective`, compiled or not, and leaves the divergence in `loss`."""
    student, taught = gpt(5), teachers(gpt(0), gpt(1), temperature=2.0)
    taught.weight = 0.3
    inputs = torch.tensor([[0, 1, 4], [2, 0, 2]])
    student.eval()
    logits = student(inputs)
    distilled = divergence(logits, taught.probabilities(inputs), TARGETS, 2.0)
    wanted = objective(logits, TARGETS, 0.1, 0.01, distilled, 0.3)
    of_batch = partial(losses.of_batch, student, label_smoothing=0.1, z_loss=0.01, teachers=taught)
    if compiles:
        of_batch = torch.compile(of_batch, backend="aot_eager")
    for _ in range(2):
        taught.loss.zero_()
        found = of_batch(inputs, TARGETS)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(taught.loss, distilled.detach())
    gradients = [torch.autograd.grad(each[0], student.wte.weight)[0] for each in (found, wanted)]
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------------- teachers


def test_teachers_only_predict() -> None:
    """They drop nothing, get no gradient, and belong to no module."""
    net = gpt(0)
    before = hash_of(net.state_dict())
    taught = teachers(net.train())
    inputs = torch.tensor([[0, 1, 4], [2, 0, 2]])
    student = student_logits()
    taught.divergence(student, inputs, TARGETS).backward()
    assert student.grad is not None
    assert all(parameter.grad is None for parameter in net.parameters())
    assert hash_of(net.state_dict()) == before == taught.hashes[0]
    assert torch.equal(taught.probabilities(inputs), taught.probabilities(inputs))
    assert not taught.probabilities(inputs).requires_grad
    owner = torch.nn.Module()
    owner.teachers = taught
    assert not [*owner.parameters(), *owner.state_dict()]


def test_a_teacher_reads_windows_in_pieces_of_its_block() -> None:
    inputs = torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))
    short, long = gpt(0, block_size=3), gpt(1, block_size=16)
    found = teachers(short, long).probabilities(inputs)
    short.eval(), long.eval()
    with torch.no_grad():
        pieces = [short(inputs[:, begin : begin + 3]).softmax(-1) for begin in (0, 3, 6)]
        wanted = (torch.cat(pieces, dim=1) + long(inputs).softmax(-1)) / 2
    torch.testing.assert_close(found, wanted)
    assert found.sum(-1).sub(1).abs().max() < 1e-6


def test_the_hash_depends_on_each_weight() -> None:
    state = gpt(0).state_dict()
    changed = {name: weight.clone() for name, weight in state.items()}
    assert hash_of(dict(reversed(changed.items()))) == hash_of(state)
    changed["ln_f.bias"][0] = torch.nextafter(changed["ln_f.bias"][0], torch.tensor(9.0))
    assert hash_of(changed) != hash_of(state)
    assert hash_of({"a": torch.zeros(4)}) != hash_of({"a": torch.zeros(2, 2)})


BPE = BytePairTokenizer.train(["the king"], TokenizerOptions("bpe", vocab_size=260))


@pytest.mark.parametrize(
    ("theirs", "ours", "difference"),
    [
        (CharTokenizer("abcde"), WordTokenizer("abcde"), "char of 5 tokens, .*word of 5 tokens$"),
        (CharTokenizer("abcde"), CharTokenizer("abc"), "char of 5 tokens, .*char of 3 tokens$"),
        (CharTokenizer("abcde"), CharTokenizer("abdef"), "its token 2 is 'c', .*student's 'd'$"),
        (WordTokenizer(["a"]), WordTokenizer(["a"], reversible=True), "they differ in reversible$"),
    ],
)
def test_another_tokenizer_is_named(
    theirs: Tokenizer, ours: Tokenizer, difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = gpt(0)
    origin = Origin("a.ckpt", net.config, net.state_dict(), theirs)
    monkeypatch.setattr(init_from, "start_from", lambda *_: origin)
    with pytest.raises(UsageError, match=f"^teachers a.ckpt: has another tokenizer.*{difference}"):
        Teachers.read(["a.ckpt"], ours, Path())


@pytest.mark.parametrize("tokenizer", [BPE, CharTokenizer("abcd", ["<EOS>"])])
def test_the_same_tokenizer_is_accepted(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may end documents, which adds ids of its own vocabulary to the text."""
    net = gpt(0)
    origin = Origin("a.ckpt", net.config, net.state_dict(), tokenizer)
    monkeypatch.setattr(init_from, "start_from", lambda *_: origin)
    assert Teachers.read(["a.ckpt"], init_from.with_document_ends(tokenizer), Path()).hashes
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    read = Teachers.read(["a.ckpt", "a.ckpt"], tokenizer, Path())
    assert torch.equal(torch.rand(3), wanted)  # a student begins as without teachers
    assert read.hashes == [hash_of(net.state_dict())] * 2


def test_other_teachers_are_refused_on_resume() -> None:
    for before, now in (([], ["a"]), (["a"], []), (["a", "b"], ["a", "b"])):
        distillation.check_same(before, now)
    for before, now in ((["a"], ["b"]), (["a", "b"], ["b", "a"]), (["a"], ["a", "a"])):
        with pytest.raises(UsageError, match="^teachers: the teachers' weights are not those"):
            distillation.check_same(before, now)
