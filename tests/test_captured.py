"""Steps as CUDA graphs, without a GPU: torch operations are recorded as a graph would record kernels, and repeated."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mixflow
from mixflow import flows
from mixflow.fitting import captured, optimizer, steps
from mixflow.fitting.captured import MOST_SHAPES, PLAIN_FIRST, Graphs

CAPTURED = "Steps: each is one launch of a CUDA graph."
ATEN = torch.ops.aten
WAITING = {ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.is_nonzero.default}


class Checking(TorchDispatchMode):
    """Refuses what would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITING:
            raise RuntimeError(f"{func} is a synchronizing operation")
        return func(*args, **(kwargs or {}))


class Recording(Checking):
    """Keeps the operations, and undoes at the end what they wrote, since a capture runs nothing."""

    def __init__(self):
        super().__init__()
        self.tape, self.before, self.drawn_so_far = [], [], torch.get_rng_state()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[number] if number < len(args) else kwargs.get(argument.name)
                self.before += [(tensor, tensor.clone()) for tensor in tensors_of(given)]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.tape.append((func, args, kwargs, out))
        return out

    @torch.no_grad()
    def undo(self):
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        torch.set_rng_state(self.drawn_so_far)


class EmulatedGraph:
    """A graph of the operations on the CPU. What Python did between them is not done again."""

    def __init__(self):
        self.replays, self.tape = 0, []

    @contextmanager
    def checked(self):
        with Checking():
            yield

    @contextmanager
    def captured(self):
        with Recording() as recording:
            yield
        recording.undo()
        self.tape = recording.tape

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.tape:
            for old, new in zip(tensors_of(out), tensors_of(func(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor the memory that was written to
                    old.copy_(new)


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors_of(part)] if isinstance(value, list | tuple) else []


@pytest.fixture
def graphs(monkeypatch):
    """Graphs on the CPU; the list of those that are made."""
    for module in (captured, optimizer, steps):
        monkeypatch.setattr(module, "can_capture", lambda device: True)
    made = []

    def make():
        made.append(EmulatedGraph())
        return made[-1]

    monkeypatch.setattr(captured, "CudaGraph", make)
    return made


def draw(rows, features, seed=0):
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def fitted(make, data, **settings):
    """The history, and the weights after each epoch's end as the scores show them."""
    flow = make()
    history = mixflow.fit(flow, data, **{"epochs": 3, "batch_size": 32, "progress": False} | settings)
    return history, flow.state_dict()


def both(make, data, **settings):
    with captured.disabled():
        plain = fitted(make, data, **settings)
    return plain, fitted(make, data, **settings)


class Waiting(torch.nn.Linear):
    """A network that looks at its numbers, which it would have to wait for on a GPU."""

    def forward(self, x):
        return super().forward(x) * (1.0 if x.sum().item() < 1e9 else 0.0)


KINDS = {
    "univariate": (lambda: flows.univariate(4), draw(200, 1), {}),
    "gaussianization": (lambda: flows.gaussianization(2, layers=3, components=4, seed=0), draw(200, 2), {}),
    "coupling": (lambda: flows.coupling(3, layers=2, components=4, hidden=(8,), seed=0), draw(200, 3), {}),
    "autoregressive": (lambda: flows.autoregressive(2, layers=2, components=4, hidden=(8,), seed=0), draw(200, 2), {}),
    "gaussian mixture": (lambda: flows.gaussian_mixture(2, components=2), draw(200, 2), {}),
    "logistic base": (lambda: flows.coupling(2, layers=1, hidden=(8,), base="logistic", seed=0), draw(200, 2), {}),
    "weights": (lambda: flows.univariate(4), draw(200, 1), {"weights": draw(200, 1, 1)[:, 0].abs()}),
    "a context": (
        lambda: flows.coupling(2, layers=1, hidden=(8,), context=1, seed=0),
        draw(200, 2),
        {"context": draw(200, 1, 1)},
    ),
    "a support": (lambda: flows.univariate(4, support="positive"), draw(200, 1).exp(), {}),
    "rounded values": (lambda: flows.univariate(4), draw(200, 1).round(decimals=1), {"resolution": 0.1}),
    "repeated values": (
        lambda: flows.autoregressive(2, layers=1, components=4, hidden=(8,), seed=0),
        torch.cat([draw(200, 1), draw(200, 1, 1).round()], dim=1),
        {},
    ),
    "an offset": (lambda: flows.univariate(4), 1.7e9 + draw(200, 1).double(), {}),
    "no clipping": (lambda: flows.univariate(4), draw(200, 1), {"max_grad_norm": float("inf")}),
    "dropout": (
        lambda: flows.coupling(
            2,
            layers=1,
            network=lambda i, o: torch.nn.Sequential(torch.nn.Linear(i, 8), torch.nn.Dropout(), torch.nn.Linear(8, o)),
            seed=0,
        ),
        draw(200, 2),
        {},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_give_the_numbers_of_plain_ones(kind, graphs):
    make, data, settings = KINDS[kind]
    (plain, plain_weights), (history, weights) = both(make, data, **settings)
    assert history.notes[-1] == CAPTURED
    assert plain.notes[-1] == "Steps: kernel by kernel, since CUDA graphs are disabled."
    assert history.train_log_prob == plain.train_log_prob
    assert history.validation_log_prob == plain.validation_log_prob
    assert all(torch.equal(weights[name], value) for name, value in plain_weights.items())
    assert max(graph.replays for graph in graphs) > PLAIN_FIRST


def test_the_last_smaller_batch_has_a_graph_of_its_own(graphs):
    fitted(lambda: flows.univariate(2), draw(100, 1), validation=0, batch_size=32, epochs=10)
    # Four batches an epoch, the last of 4 rows. Each shape takes its first steps plainly.
    assert sorted(graph.replays for graph in graphs if graph.replays) == [10 - PLAIN_FIRST, 30 - PLAIN_FIRST]


def test_a_captured_run_goes_on_from_its_checkpoint_with_the_same_numbers(graphs, tmp_path):
    _, whole = fitted(lambda: flows.univariate(4), draw(200, 1), epochs=6)
    flow, stops = flows.univariate(4), iter([False, False, True])
    file = tmp_path / "run.checkpoint"

    def interrupted(training):
        stop = next(stops)
        if stop:
            raise KeyboardInterrupt
        return epoch(training)

    with pytest.MonkeyPatch.context() as patch:
        epoch = mixflow.fitting.epochs.Training.epoch
        patch.setattr(mixflow.fitting.epochs.Training, "epoch", interrupted)
        mixflow.fit(flow, draw(200, 1), epochs=6, batch_size=32, progress=False, checkpoint=file)
    flow = flows.univariate(4)
    history = mixflow.fit(flow, draw(200, 1), epochs=6, batch_size=32, progress=False, checkpoint=file, resume=True)
    assert len(history.lr) == 6
    assert all(torch.equal(value, whole[name]) for name, value in flow.state_dict().items())


def test_a_step_that_waits_stays_plain_and_the_history_says_why(graphs):
    def make():
        return flows.coupling(2, layers=1, network=Waiting, seed=0)

    (_, plain), (history, weights) = both(make, draw(200, 2))
    assert history.notes[-1].startswith("Steps: kernel by kernel, since a step waits for the GPU (aten._local_scalar")
    assert all(torch.equal(weights[name], value) for name, value in plain.items())
    assert not any(graph.replays for graph in graphs)


def test_a_step_that_cannot_be_captured_stays_plain(graphs, monkeypatch):
    @contextmanager
    def refused(graph):
        raise RuntimeError("operation not permitted\nand more")
        yield

    monkeypatch.setattr(EmulatedGraph, "captured", refused)
    (_, plain), (history, weights) = both(lambda: flows.univariate(2), draw(200, 1))
    expected = "Steps: kernel by kernel, since a step could not be captured (operation not permitted)."
    assert history.notes[-1] == expected
    assert all(torch.equal(weights[name], value) for name, value in plain.items())


def test_batches_of_many_shapes_are_not_captured(graphs):
    sizes = [20 + number for number in range(MOST_SHAPES + 2)]
    batches = [draw(size, 1, size) for size in sizes * 2]
    history = mixflow.fit(flows.univariate(2), Batches(batches), epochs=4, progress=False)
    assert history.notes[-1] == f"Steps: kernel by kernel, since there are batches of more than {MOST_SHAPES} shapes."


class Batches:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_an_error_of_the_work_itself_is_raised(graphs):
    def broken(x):
        raise RuntimeError("a broken network")

    with pytest.raises(RuntimeError, match="a broken network"):
        Graphs(broken)(torch.ones(1))


def test_several_processes_take_plain_steps(graphs):
    total = torch.zeros(())
    run = Graphs(total.add_, why_not="several processes share each batch")
    for _ in range(PLAIN_FIRST + 2):
        run(torch.ones(()))
    assert total == PLAIN_FIRST + 2
    assert not graphs
    assert run.note == "Steps: kernel by kernel, since several processes share each batch."


def test_a_cpu_has_no_graphs_and_nothing_to_say():
    history, _ = fitted(lambda: flows.univariate(2), draw(100, 1))
    assert not [note for note in history.notes if note.startswith("Steps")]


def test_the_emulation_does_not_repeat_what_python_decides():
    # What the tests above rest on: a number that Python hands over is recorded as it was.
    rate, total, graph = [1.0], torch.zeros(()), EmulatedGraph()
    with graph.captured():
        total.add_(rate[0])
    assert total == 0.0
    rate[0] = 5.0
    graph.replay()
    assert total == 1.0
