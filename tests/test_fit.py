"""Maximum-likelihood fitting: it finds the truth, repeats itself, stops when told, and says what is wrong."""

import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import mixflow
from mixflow import History, flows
from mixflow.fitting import epochs as learning
from mixflow.fitting import threads
from mixflow.fitting.checkpoint import weights
from mixflow.fitting.optimizer import OneCall, optimizer_for
from mixflow.fitting.sources import shuffled

WEIGHT = torch.tensor([0.3, 0.2, 0.4, 0.1], dtype=torch.float64)
LOC = torch.tensor([-4.0, 0.0, 1.5, 6.0], dtype=torch.float64)
SCALE = torch.tensor([0.5, 1.0, 0.3, 1.5], dtype=torch.float64)


def true_log_prob(x):
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(WEIGHT), torch.distributions.Normal(LOC, SCALE)
    ).log_prob(x)


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    which = torch.multinomial(WEIGHT, n, replacement=True, generator=generator)
    return LOC[which] + SCALE[which] * torch.randn(n, generator=generator, dtype=torch.float64)


def fit_small(data, seed=0, **options):
    flow = flows.univariate(components=3)
    history = mixflow.fit(flow, data, **{"epochs": 5, "progress": False, "seed": seed} | options)
    return flow, history


def equal_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_four_component_mixture_is_found_within_a_hundredth_of_a_nat():
    flow = flows.univariate(components=4)
    mixflow.fit(flow, draw(20_000), progress=False)
    x = torch.linspace(-15.0, 25.0, 40_001, dtype=torch.float64)
    p = true_log_prob(x)
    with torch.no_grad():
        kl = torch.trapezoid(p.exp() * (p - flow.double().log_prob(x)), x).item()
    assert -1e-9 < kl < 0.01


def test_context_is_learned():
    generator = torch.Generator().manual_seed(0)
    context = torch.rand(2000, 1, generator=generator) * 4.0 - 2.0
    x = context.squeeze(-1) + 0.1 * torch.randn(2000, generator=generator)
    torch.manual_seed(0)
    flow = flows.univariate(components=2, context=1)
    history = mixflow.fit(flow, x, context=context, epochs=20, progress=False)
    # The best that a flow without the context could do is the entropy of x, about -1.39 nats.
    assert history.validation_log_prob[history.best_epoch] > 0.5


def test_same_seed_same_weights():
    data = draw(500)
    first, _ = fit_small(data)
    second, _ = fit_small(data)
    other, _ = fit_small(data, seed=1)
    assert equal_weights(first, second)
    assert not equal_weights(first, other)


def test_global_random_state_is_neither_read_nor_changed():
    data = draw(500)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = fit_small(data)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, _ = fit_small(data)
    assert equal_weights(first, second)


@pytest.mark.parametrize("kind", ["tensor", "array", "column", "list", "float32", "integers"])
def test_data_may_be_any_array_of_numbers(kind):
    data = (100.0 * draw(200)).round()
    given = {
        "tensor": data,
        "array": data.numpy(),
        "column": data.unsqueeze(-1),
        "list": data.tolist(),
        "float32": data.float(),
        "integers": data.long().numpy(),
    }[kind]
    expected, _ = fit_small(data)
    flow, _ = fit_small(given)
    if kind == "float32":  # in whose precision the offset is kept
        assert flow.state_dict()["data_to_base.transforms.0.loc"].dtype == torch.float32
        torch.testing.assert_close(dict(flow.named_parameters()), dict(expected.named_parameters()))
    else:
        assert equal_weights(flow, expected)


def test_the_best_epoch_s_weights_are_kept():
    data = draw(300)
    # From weights that know nothing of the data, and with steps so large that the last epochs are not the best.
    flow, history = fit_small(data, epochs=40, lr=1.0, validation=0.3, initialize=False)
    assert len(history.validation_log_prob) == len(history.lr) == len(history.seconds)
    assert history.best_epoch < len(history.lr) - 1
    held_out = torch.from_numpy(shuffled(np.arange(90), 300, 0, 0))
    with torch.no_grad():
        score = flow.log_prob(data.float()[held_out]).double().mean().item()
    assert score == pytest.approx(max(history.validation_log_prob), rel=1e-6)


def test_patience_ends_the_training():
    _, history = fit_small(draw(300), epochs=500, lr=0.5, patience=3, validation=0.3, initialize=False)
    assert len(history.lr) == history.best_epoch + 1 + 3 < 500


def test_without_validation_the_training_curve_is_watched():
    _, history = fit_small(draw(300), validation=0.0)
    assert history.validation_log_prob == []
    assert history.best_epoch == int(np.argmax(history.train_log_prob))


def expected_rate(lr, part):
    """From a tenth of lr up to lr over a twentieth of the steps, then down along a half cosine."""
    rising = part < 0.05
    return lr * (0.1 + 0.9 * part / 0.05) if rising else 0.5 * lr * (1 + math.cos(math.pi * (part - 0.05) / 0.95))


def test_learning_rate_rises_and_then_falls_along_a_half_cosine():
    _, history = fit_small(draw(300), epochs=40, lr=0.1, patience=40)
    assert history.lr == pytest.approx([expected_rate(0.1, epoch / 40) for epoch in range(40)])
    assert history.lr[0] == pytest.approx(0.01)
    assert np.argmax(history.lr) == 2


def test_the_default_learning_rate_is_smaller_for_networks():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    for flow, lr in ((flows.gaussianization(2, 2), 0.02), (flows.coupling(2, 1, 2, (4,)), 0.003)):
        assert mixflow.fit(flow, x, epochs=1, progress=False).lr == pytest.approx([0.1 * lr])


def test_learning_rate_falls_within_an_epoch(monkeypatch):
    rates = []

    def watched(*tensors, **options):
        rates.append(options["lr"])
        return step(*tensors, **options)

    step = torch._fused_adamw_
    monkeypatch.setattr(torch, "_fused_adamw_", watched)
    fit_small(draw(300), epochs=2, lr=0.1, batch_size=100, validation=0.0)
    assert rates == pytest.approx([expected_rate(0.1, number / 6) for number in range(6)])


def test_the_one_call_of_the_optimizer_is_its_step():
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in ((3, 5), (7,), (33, 65))]
    options = {"lr": 0.03, "weight_decay": 0.1}
    own, theirs = ([torch.nn.Parameter(value.clone()) for value in values] for _ in range(2))
    optimizer = optimizer_for(own, **options)
    call, reference = OneCall(optimizer), torch.optim.AdamW(theirs, **options, fused=True)
    for _ in range(5):
        for parameters in zip(own, theirs, strict=True):
            gradient = torch.randn(parameters[0].shape, generator=generator)
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.copy_(gradient)  # the call keeps the tensors that the first step has seen
        call.step()
        reference.step()
    assert all(map(torch.equal, own, theirs))
    assert [float(optimizer.state[parameter]["step"]) for parameter in own] == [5.0] * 3


def test_gradients_are_clipped_and_weights_decay():
    class Still(mixflow.transforms.MixtureCDF):
        def initialize(self, x, context=None):
            """Stay off the optimum, where there would be no gradient."""

    def moved(**options):
        flow = flows.Flow(Still(1, 1))
        torch.nn.init.constant_(flow.data_to_base.loc, 0.5)
        before = flow.data_to_base.loc.item()
        mixflow.fit(flow, data, epochs=1, batch_size=1000, validation=0.0, lr=1.0, progress=False, **options)
        return before, flow.data_to_base.loc.item()

    data = draw(1000)
    # The first learning rate is a tenth of lr. Adam's first step is as large whatever the size of the gradient, down
    # to its epsilon of 1e-8, here a tenth of the norm.
    before, after = moved()
    assert abs(after - before) == pytest.approx(0.1, rel=1e-4)
    before, clipped = moved(max_grad_norm=1e-9)
    assert 0.0 < abs(clipped - before) < 0.02
    # AdamW multiplies by 1 - lr * weight_decay, and then takes the same step.
    before, decayed = moved(weight_decay=0.5)
    assert decayed - after == pytest.approx(-0.05 * before, rel=1e-3)


def test_the_step_is_named_however_seldom_the_losses_are_read(monkeypatch):
    for every in (1, 3, 100):
        monkeypatch.setattr(learning, "READ_EVERY", every)
        with pytest.warns(RuntimeWarning, match=r"the loss is nan at step 5 \(epoch 1\)"):
            mixflow.fit(flows.Flow(Breaking(5)), draw(1000), batch_size=50, progress=False)


def test_no_gradients_are_left_behind():
    flow, _ = fit_small(draw(100))
    assert all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize("device", ["cuda:99", "meta", "nowhere", "cpu:0:1"])
def test_a_device_that_cannot_be_used_is_refused(device):
    flow = flows.univariate()
    before = weights(flow)
    with pytest.raises(ValueError, match=f"device: expected one that torch can use here, got '{device}'"):
        mixflow.fit(flow, draw(100), device=device, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())


def test_a_device_may_be_named():
    data = draw(200)
    expected, _ = fit_small(data)
    for device in ("cpu", torch.device("cpu")):
        assert equal_weights(fit_small(data, device=device)[0], expected)


class Breaking(mixflow.transforms.Affine):
    """An affine transform whose ladj is NaN from a given call on."""

    def __init__(self, calls):
        super().__init__(1)
        self.calls = calls

    def _forward(self, x, context):
        self.calls -= 1
        z, ladj = super()._forward(x, context)
        return z, ladj + (math.nan if self.calls < 0 else 0.0)


def test_nan_loss_names_the_step_and_restores_the_best_weights():
    data = draw(1000)
    # 900 training rows in batches of 300, and one scoring of the held-out rows: 4 calls an epoch, after one at the
    # start.
    flow = flows.Flow(Breaking(10))
    message = (
        r"the loss is nan at step 8 \(epoch 3\): the training ends here, the best weights, of epoch [12], are kept"
    )
    with pytest.warns(RuntimeWarning, match=message):
        history = mixflow.fit(flow, data, epochs=20, batch_size=300, progress=False, initialize=False)
    assert len(history.lr) == 2
    assert not history.interrupted
    assert "the loss is nan" in history.notes[-1]
    assert all(value.isfinite().all() for value in flow.state_dict().values())
    assert flow.log_prob(data.float()).isnan().all()  # still broken, as built: only the weights are restored


def test_nan_at_once_restores_the_initial_weights():
    with pytest.warns(RuntimeWarning, match=r"at step 1 .*the weights of the start are kept. A smaller lr or float64"):
        mixflow.fit(flows.Flow(Breaking(1)), draw(100), progress=False)


def test_a_warning_names_what_may_have_caused_it():
    data = torch.cat([draw(1000).round(), torch.tensor([1e9], dtype=torch.float64)])
    with pytest.warns(RuntimeWarning, match=r"Likely cause: repeated values in x1 .*; values far out in x1\."):
        mixflow.fit(flows.Flow(Breaking(1)), data, progress=False)


def test_ctrl_c_returns_the_best_so_far():
    class Interrupted(mixflow.transforms.Affine):
        calls = 0

        def _forward(self, x, context):
            self.calls += 1
            if self.calls == 11:
                raise KeyboardInterrupt
            return super()._forward(x, context)

    flow = flows.Flow(Interrupted(1))
    history = mixflow.fit(flow, draw(1000), batch_size=300, progress=False)
    assert history.interrupted
    assert len(history.lr) == len(history.validation_log_prob) == 2
    assert "interrupted" in repr(history)


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_ctrl_c_while_the_best_weights_are_kept_leaves_history_and_weights_in_step(monkeypatch, validation):
    kept = []

    def interrupted(flow):
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(weights(flow))
        return kept[-1]

    monkeypatch.setattr(learning, "weights", interrupted)
    flow, history = fit_small(draw(20_000), epochs=500, lr=0.02, validation=validation, initialize=False)
    assert history.interrupted
    # One set of each of the first epochs, all of them better than the one before.
    assert history.best_epoch == len(history.lr) - 1 == 1
    assert all(torch.equal(value, kept[-1][name]) for name, value in flow.state_dict().items())


def test_progress_bar_shows_scores_and_throughput(capsys):
    fit_small(draw(200), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    for word in ("train", "validation", "rows/s", "5/5"):
        assert word in shown.err
    fit_small(draw(200), progress=False)
    assert capsys.readouterr().err == ""


def with_value(value, row):
    data = draw(100)
    data[row] = value
    return data


BAD_DATA = {
    "nan": (
        ValueError,
        r"data: expected finite numbers, got nan in row 41, column 0",
        with_value(math.nan, 41),
    ),
    "infinite": (ValueError, r"got -inf in row 7, column 0", with_value(-math.inf, 7)),
    "constant": (
        ValueError,
        r"data: expected columns that vary, got the constant 2.5 in column 0",
        [2.5] * 50,
    ),
    "constant in float32": (ValueError, "constant 1e\\+09 in column 0.*float32", (1e9 + draw(100)).float()),
    "empty": (ValueError, "data: expected at least one row, got none", []),
    "one row": (ValueError, "data: expected at least 2 rows to learn from beside 1 held out, got 1", [1.0]),
    "two columns": (ValueError, r"data: expected shape \(N,\) or \(N, 1\), got \(50, 2\)", np.zeros((50, 2))),
    "a cube": (ValueError, r"data: expected shape .*got \(5, 1, 1\)", np.zeros((5, 1, 1))),
    "words": (TypeError, "data: expected an array of real numbers", ["one", "two"]),
    "complex": (TypeError, "data: expected an array of real numbers, got complex128", np.zeros(9, dtype=complex)),
    "ragged": (TypeError, "data: expected an array of real numbers", [[1.0], [1.0, 2.0]]),
}


@pytest.mark.parametrize("bad", BAD_DATA)
def test_bad_data_are_described(bad):
    error, message, data = BAD_DATA[bad]
    with pytest.raises(error, match=message):
        fit_small(data)


def test_each_constant_column_is_named():
    flow = flows.Flow(mixflow.transforms.MixtureCDF(3, 2))
    data = np.random.default_rng(0).normal(size=(50, 3))
    data[:, 1] = 4.0
    with pytest.raises(ValueError, match="the constant 4 in column 1"):
        mixflow.fit(flow, data, progress=False)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("validation: .*got 1.0", {"validation": 1.0}),
        ("a: expected a file ending in .csv.*got 'no ending'", {"validation": "a"}),
        ('resolution: expected None, "auto", or a number of at least 0, got -1', {"resolution": -1}),
        ("resolution: .*got 'fine'", {"resolution": "fine"}),
        ("steps_per_epoch: expected None, as data are rows, got 3", {"steps_per_epoch": 3}),
        ("weights: expected 100 rows, as many as data, got 99", {"weights": np.ones(99)}),
        ("validation: .*got nan", {"validation": math.nan}),
        ("lr: .*got 'fast'", {"lr": "fast"}),
        ("lr: .*got inf", {"lr": math.inf}),
        ("seed: expected an integer.*got 1.5", {"seed": 1.5}),
        ("seed: expected an integer.*got None", {"seed": None}),
        (f"seed: expected an integer.*got {10**23}", {"seed": 10**23}),
        ("epochs: .*got True", {"epochs": True}),
        ("epochs: .*got 1.0", {"epochs": 1.0}),
        ("batch_size: .*got 0", {"batch_size": 0}),
        ("epochs: .*got 0", {"epochs": 0}),
        ("batch_size: .*got -5", {"batch_size": -5}),
        ("lr: .*got 0.0", {"lr": 0.0}),
        ("patience: .*got 0", {"patience": 0}),
        ("weight_decay: .*got -1", {"weight_decay": -1}),
        ("weight_decay: .*got 'a'", {"weight_decay": "a"}),
        ("max_grad_norm: .*got 0", {"max_grad_norm": 0}),
        ("max_grad_norm: .*got nan", {"max_grad_norm": math.nan}),
        ("resume: expected a checkpoint to go on from, got checkpoint=None", {"resume": True}),
        ("context: expected None, as this flow takes no context, got one", {"context": np.zeros((100, 1))}),
    ],
)
def test_bad_settings_are_named(message, options):
    with pytest.raises(ValueError, match=message):
        fit_small(draw(100), **options)


def test_settings_may_be_numbers_of_numpy(tmp_path):
    data = draw(100)
    settings = {"epochs": 3, "batch_size": 30, "patience": 2, "seed": 1, "lr": 0.125, "validation": 0.25}
    given = {
        name: np.float32(value) if isinstance(value, float) else np.int64(value) for name, value in settings.items()
    }
    assert equal_weights(fit_small(data, **settings)[0], fit_small(data, **given, checkpoint=tmp_path / "c")[0])


def test_a_flow_without_trainable_parameters_is_refused():
    frozen = flows.univariate()
    frozen.requires_grad_(False)
    for flow in (frozen, flows.Flow(mixflow.transforms.Affine(1, trainable=False))):
        with pytest.raises(ValueError, match="flow: expected one with trainable parameters"):
            mixflow.fit(flow, draw(100), progress=False)


def test_a_flow_of_two_dtypes_is_refused():
    flow = flows.gaussianization(1, layers=2)
    next(flow.parameters()).data = next(flow.parameters()).data.double()
    with pytest.raises(ValueError, match=r"flow: .*one dtype on one device, got torch\.float32 on cpu, torch\.float64"):
        mixflow.fit(flow, draw(100), progress=False)


def test_fit_learns_where_gradients_are_off():
    data = draw(200)
    expected, _ = fit_small(data)
    with torch.no_grad():
        flow, _ = fit_small(data)
    assert equal_weights(flow, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_fitted(dtype, tmp_path):
    flow = flows.univariate(3).to(dtype)
    history = mixflow.fit(flow, draw(200), epochs=20, progress=False, checkpoint=tmp_path / "c", initialize=False)
    assert history.train_log_prob[-1] > history.train_log_prob[0]
    assert {value.dtype for value in flow.parameters()} == {dtype}
    assert flow.log_prob(draw(5)).dtype == dtype


def test_a_constant_column_is_called_by_its_name():
    flow = flows.univariate()
    flow.notes["columns"] = ["length"]
    with pytest.raises(ValueError, match=r"got the constant 2\.5 in column 'length' as far as"):
        mixflow.fit(flow, [2.5] * 50, progress=False)


def test_bad_contexts_are_described():
    flow = flows.univariate(context=2)
    with pytest.raises(ValueError, match=r"context: expected shape \(100, 2\), got None"):
        mixflow.fit(flow, draw(100), progress=False)
    with pytest.raises(ValueError, match="context: expected 100 rows, as many as data, got 99"):
        mixflow.fit(flow, draw(100), context=np.zeros((99, 2)), progress=False)


def test_history_reads_well_and_survives_json():
    history = History([-2.0, -1.5, -1.6], [-2.1, -1.4, -1.7], [0.1, 0.05, 0.0], [1.0, 1.0, 1.0])
    assert repr(history) == "History(3 epochs in 3.0 s, best at epoch 2: train -1.5000, validation -1.4000 nats)"
    assert History.from_dict(history.to_dict()) == history
    assert repr(History()) == "History(0 epochs)"
    for bad in (None, [], {}, history.to_dict() | {"lr": "fast"}, history.to_dict() | {"lr": [0.1]}):
        with pytest.raises(ValueError, match="history: expected the dictionary"):
            History.from_dict(bad)


# -- checkpoints ---------------------------------------------------------------------------------------------

RUN = """
import sys, mixflow, numpy as np
flow = mixflow.flows.univariate(components=3)
mixflow.fit(flow, np.load("data.npy"), epochs=100, patience=100, batch_size=32, progress=False,
            checkpoint="run.checkpoint", resume=True)
mixflow.save(flow, sys.argv[1])
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_weights(tmp_path):
    np.save(tmp_path / "data.npy", draw(300).numpy())
    checkpoint = tmp_path / "run.checkpoint"
    run = [sys.executable, "-c", RUN]
    wait = random.Random()
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        process = subprocess.Popen([*run, "killed.safetensors"], cwd=tmp_path)
        deadline = time.monotonic() + 100.0
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                break
            time.sleep(0.001)
        time.sleep(wait.uniform(0.0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed.safetensors").exists(), "it ended before it could be killed"
    subprocess.run([*run, "resumed.safetensors"], cwd=tmp_path, check=True)
    checkpoint.unlink()
    subprocess.run([*run, "whole.safetensors"], cwd=tmp_path, check=True)
    resumed, whole = (mixflow.load(tmp_path / f"{name}.safetensors") for name in ("resumed", "whole"))
    assert equal_weights(resumed, whole)


def test_resuming_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    fit_small(draw(100), checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint: .*a run with seed = 0, this run has seed = 1"):
        fit_small(draw(100), seed=1, checkpoint=checkpoint, resume=True)
    with pytest.raises(ValueError, match=r"checkpoint: .*a run with data = "):
        fit_small(draw(100, seed=5), checkpoint=checkpoint, resume=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"checkpoint: .*damaged or not a checkpoint"):
        fit_small(draw(100), checkpoint=checkpoint, resume=True)


def test_a_model_is_not_a_checkpoint(tmp_path):
    model = tmp_path / "model.safetensors"
    mixflow.save(flows.univariate(), model)
    with pytest.raises(ValueError, match="not a mixflow checkpoint"):
        fit_small(draw(100), checkpoint=model, resume=True)


def hand_built(components=3, family="gaussian"):
    flow = flows.Flow(mixflow.transforms.MixtureCDF(1, components, family))
    flow.load_state_dict({name: value + 0.5 for name, value in flow.state_dict().items()})
    return flow


def test_another_hand_built_flow_is_not_resumed(tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    options = {"epochs": 2, "progress": False, "checkpoint": checkpoint, "resume": True}
    mixflow.fit(hand_built(), draw(100), **options)
    for other, said in ((hand_built(4), "components=4"), (hand_built(family="logistic"), "'logistic'")):
        before = weights(other)
        with pytest.raises(ValueError, match=f"checkpoint: .* this run has flow = .*{said}"):
            mixflow.fit(other, draw(100), **options)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_of_two_long_flows_only_what_differs_is_shown(tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    options = {"epochs": 1, "progress": False, "checkpoint": checkpoint}
    mixflow.fit(flows.coupling(2, layers=6, seed=0), draw(200).reshape(100, 2), **options)
    with pytest.raises(ValueError, match=r"flow = \.\.\. .*, this run has flow = \.\.\. ") as caught:
        mixflow.fit(flows.autoregressive(2, layers=6, seed=0), draw(200).reshape(100, 2), resume=True, **options)
    assert len(str(caught.value)) < 300 + len(str(checkpoint))


class Wide(mixflow.transforms.Affine):
    """An affine transform with a tensor whose size its repr does not show."""

    def __init__(self, size):
        super().__init__(1)
        self.register_buffer("extra", torch.zeros(size))


def test_a_refused_fit_leaves_the_flow_as_it_was(tmp_path):
    finished, wide, garbled, other = (tmp_path / name for name in ("finished", "wide", "garbled", "other"))
    options = {"epochs": 2, "progress": False}
    mixflow.fit(hand_built(), draw(100), checkpoint=finished, **options)
    mixflow.fit(flows.Flow(Wide(3)), draw(100), checkpoint=wide, **options)
    mixflow.save(flows.univariate(), other)
    garbled.write_bytes(finished.read_bytes().replace(b"train_log_prob", b"train_log_prod"))
    for flow, checkpoint, data, message in (
        (hand_built(), finished, draw(100, seed=5), "a run with data"),
        (
            flows.Flow(Wide(4)),
            wide,
            draw(100),
            r"another flow: best.data_to_base.extra: expected shape \(4,\), got \(3,\)",
        ),
        (hand_built(), garbled, draw(100), "damaged, its contents do not match its checksum"),
        (hand_built(), other, draw(100), "not a mixflow checkpoint"),
        (hand_built(), tmp_path / "none" / "c", draw(100), "cannot write here"),
        (hand_built(), tmp_path, draw(100), "expected a file, got a directory"),
        (
            flows.Flow(mixflow.transforms.Compose(mixflow.transforms.Affine(1), Hopeless(1))),
            None,
            draw(100),
            "cannot start",
        ),
    ):
        before = weights(flow)
        with pytest.raises((ValueError, OSError), match=message):
            mixflow.fit(flow, data, checkpoint=checkpoint, resume=checkpoint is not None, **options)
        assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items()), message


class Hopeless(mixflow.transforms.Affine):
    """A transform that no data suit."""

    def initialize(self, x, context=None):
        raise ValueError("cannot start")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    flow, history = fit_small(draw(100), checkpoint=checkpoint)
    again, repeated = fit_small(draw(100), checkpoint=checkpoint, resume=True)
    assert equal_weights(flow, again)
    assert repeated == history
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoint"]


class Watching(mixflow.transforms.Affine):
    """Notes how many threads torch takes, and how many the core may take."""

    def __init__(self):
        super().__init__(1)
        self.seen = set()

    def _forward(self, x, context):
        self.seen.add((torch.get_num_threads(), mixflow.op.limit.threads))
        return super()._forward(x, context)


@pytest.mark.parametrize(("numbers", "expected"), [(threads.NUMBERS, (1, 2)), (1, (2, 0))])
def test_steps_and_scores_take_further_threads_only_where_batches_are_large(monkeypatch, numbers, expected):
    monkeypatch.setattr(threads, "NUMBERS", numbers)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        flow = flows.Flow(Watching())
        mixflow.fit(flow, draw(300), epochs=1, progress=False, initialize=False)
        assert flow.data_to_base.seen == {expected}
        assert (torch.get_num_threads(), mixflow.op.limit.threads) == (2, 0)
    finally:
        torch.set_num_threads(before)


def test_networks_take_further_threads_where_their_products_are_long():
    def matrix(size):
        return lambda inputs, outputs: torch.nn.Sequential(
            torch.nn.Linear(inputs, size), torch.nn.Linear(size, size), torch.nn.Linear(size, outputs)
        )

    x = draw(20)[:, None].expand(20, 2)
    small, large = (flows.coupling(2, layers=1, network=matrix(size), seed=0).train() for size in (8, 2048))
    assert not threads.are_worthwhile(small, x, None, 256)
    assert threads.are_worthwhile(large, x, None, 256)
    assert large.training
    assert threads.are_worthwhile(small, x, None, threads.NUMBERS)


def test_a_compiled_embedding_is_fitted_without_a_warning():
    torch.compiler.reset()
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU(), torch.nn.Linear(4, 2))
    flow = flows.coupling(2, layers=1, context=2, embedding=torch.compile(network, backend="eager"), seed=0)
    data, context = draw(200).reshape(100, 2), draw(300, 1).reshape(100, 3)
    history = mixflow.fit(flow, data, context=context, epochs=1, progress=False)
    assert len(history.lr) == 1


def test_weights_learn_the_same_however_they_lie_in_memory():
    def network(turned):
        def build(inputs, outputs):
            layers = torch.nn.Sequential(torch.nn.Linear(inputs, 8), torch.nn.SiLU(), torch.nn.Linear(8, outputs))
            for layer in layers[::2] if turned else []:
                layer.weight = torch.nn.Parameter(layer.weight.detach().T.contiguous().T)
            return layers

        return build

    learned = []
    for turned in (False, True):
        flow = flows.coupling(2, layers=2, components=3, network=network(turned), seed=0)
        mixflow.fit(flow, draw(400).reshape(200, 2), epochs=3, progress=False, validation=0)
        learned.append(flow.state_dict())
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value)


def test_mixtures_that_share_parameters_are_named():
    first, second = (mixflow.transforms.MixtureCDF(1, 3) for _ in range(2))
    second.logits = first.logits
    flow = flows.Flow(mixflow.transforms.Compose(first, second))
    history = mixflow.fit(flow, draw(200), epochs=1, progress=False)
    note = "Mixtures with parameters of others (data_to_base.transforms.1): trained without a prior on their scales."
    assert history.notes[-1] == note
