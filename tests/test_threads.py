"""Four threads at once, as servers call: what each gets is what it gets alone, to the bit.

Threads alternate at gates inside the module: where one stops with its hooks set, the next one goes on. So they overlap
in the same way at each run, whatever the machine does.
"""

import pickle
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from threading import Barrier, BrokenBarrierError, Condition, Event, get_ident

import cleanlab.filter
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import drawn, network_and_images, write_images
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from utils import (
    Cut,
    DataError,
    FromFiles,
    ask,
    choose_pairs,
    compare,
    decompose,
    edit_figure,
    embed_references,
    explain,
    explain_folder,
    figure,
    find_suspects,
    gallery,
    grid,
    images_figure,
    judge,
    judge_all,
    matches_figure,
    methods_of,
    most_similar,
    read_image,
    region_figure,
    sanity_curves,
    sanity_figure,
    smallest_edit,
    view,
)
from utils.audit.labels import judge_labels
from utils.config import ExplanationSettings
from utils.network.distance import copy_of, distances_of, evaluating, unit
from utils.network.hooks import hooked
from utils.network.variants import dilated, folded, fully_random, randomised
from utils.show.drawing import nothing
from utils.trust.faithfulness import insertion_deletion

THREADS = 4
ROUNDS = 20
PATIENCE = 60  # seconds until a thread that nobody lets go on is an error
SHORT = 0.2  # seconds that a thread waits for another one, which may not come
SETTINGS = ExplanationSettings(steps=2)


class Turns:
    """Threads that take turns: the first of them runs, and at a gate it makes way for the next."""

    def __init__(self):
        self.changed = Condition()
        self.order = deque()

    def gate(self):
        me = get_ident()
        with self.changed:
            if me in self.order:
                self.order.rotate(-1)
                self._wait(me)

    def together(self, *functions) -> list:
        """What functions return, or the errors that they raise, each in a thread of its own."""
        begin = Barrier(len(functions))

        def run(function):
            me = get_ident()
            with self.changed:
                self.order.append(me)
            begin.wait(PATIENCE)
            try:
                with self.changed:
                    self._wait(me)
                return function()
            except Exception as error:
                return error
            finally:
                with self.changed:
                    self.order.remove(me)
                    self.changed.notify_all()

        with ThreadPoolExecutor(len(functions)) as pool:
            return list(pool.map(run, functions))

    def _wait(self, me):
        self.changed.notify_all()
        assert self.changed.wait_for(lambda: self.order[0] == me, PATIENCE), "no thread makes way"


TURNS = Turns()


class Gate(nn.Module):
    def forward(self, x):
        TURNS.gate()
        return x


class Blocks(nn.Module):
    """A map as (N, C, h, w), then tokens with a class token in front, images first or second; linear behind."""

    def __init__(self, batch_first):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.gate = Gate()
        self.batch_first = batch_first

    def forward(self, images):
        maps = self.gate(self.patches(images))
        tokens = torch.cat([self.token.expand(len(images), -1, -1), maps.flatten(2).mT], dim=1)
        tokens = self.block(tokens if self.batch_first else tokens.transpose(0, 1))
        tokens = self.gate(tokens if self.batch_first else tokens.transpose(0, 1))
        return self.gate(tokens[:, 1:].mean(dim=1))


def convolutions():
    """Pooling and one linear layer stand behind the layer "4"; batch norm and dropout before it have modes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), Gate(), nn.Dropout(0.2), nn.ReLU(), Gate()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), Gate())


def siamese():
    """A SiameseNetwork with gates before some of its modules."""
    network, images = network_and_images()
    for path in ("maxpool", "layer2", "layer4"):
        network.backbone.get_submodule(path).register_forward_pre_hook(_make_way)
    network.embedding.register_forward_pre_hook(_make_way)
    return network, images


def _make_way(module, inputs):
    TURNS.gate()


def tokens(batch_first=True):
    torch.manual_seed(0)
    return Blocks(batch_first)


def content_of(result):
    """All that a result holds, as plain values that can be compared exactly."""
    if isinstance(result, torch.Tensor):
        return content_of(result.detach().numpy())
    if isinstance(result, np.ndarray):
        return result.shape, result.tobytes()
    if isinstance(result, Figure):
        return content_of(drawn(result))
    if isinstance(result, pd.DataFrame):
        return result.to_csv()
    if is_dataclass(result):
        return {field.name: content_of(getattr(result, field.name)) for field in fields(result)}
    if isinstance(result, dict):
        return {name: content_of(value) for name, value in result.items()}
    if isinstance(result, list | tuple):
        return [content_of(value) for value in result]
    if isinstance(result, Exception):
        raise result
    return result


def check_together(tasks: dict, rounds=1):
    """All tasks, four at a time, in another order each round: each must give what it gives alone."""
    alone = {name: content_of(task()) for name, task in tasks.items()}
    for number in range(rounds):
        names = np.random.default_rng(number).permutation(list(tasks)).tolist()
        for start in range(0, len(names), THREADS):
            chosen = names[start : start + THREADS]
            results = TURNS.together(*(tasks[name] for name in chosen))
            for name, result in zip(chosen, results, strict=True):
                assert content_of(result) == alone[name], (name, chosen)


def simple_tasks(network, images, layer):
    """The quick functions that run a network, on other images each."""
    flat = images.flatten(0, 1)
    methods = {name: method for name, method in methods_of(SETTINGS).items() if name != "occlusion"}
    explanation = explain(network, images, 0.5)
    tasks = {name: partial(method, network, images, 0.5) for name, method in methods.items()}
    tasks |= {
        "embeddings": partial(_embedded, network, flat),
        "other embeddings": partial(_embedded, network, flat.flip(-1)),
        "distances": partial(distances_of, network, images),
        "references": partial(embed_references, network, flat),
        "features": partial(network.features, flat, layer),
        "judge": partial(judge, network, explanation),
        "insertion": partial(insertion_deletion, network, explanation),
        "counterfactual": partial(smallest_edit, network, explanation[0]),
        "matches": partial(decompose, network, explanation[0], steps=2),
        "view": partial(_viewed, network, explanation[0]),
    }
    return tasks


def _embedded(network, images):
    with torch.no_grad():
        return [network(images) for _ in range(6)]


def _viewed(network, explanation):
    return view(explanation, matches=decompose(network, explanation, steps=2))


def hooks_on(network):
    return [hook for part in network.modules() for hook in part._forward_hooks.values()]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Threads change places often between two lines; afterwards none is left."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
    assert not TURNS.order


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        (convolutions, "0"),
        (convolutions, "4"),
        (tokens, "patches"),
        (tokens, "block"),
        (partial(tokens, False), "block"),
    ],
)
def test_a_cut_gives_in_four_threads_what_it_gives_in_one(module, layer):
    network = Cut(module().eval(), layer)
    check_together(simple_tasks(network, torch.randn(2, 2, 3, 32, 40), layer), rounds=2)
    assert not hooks_on(network)


def test_a_siamese_network_does_so_at_all_layers_by_all_methods():
    network, images = siamese()
    every = simple_tasks(network, images, "layer2")
    tasks = {name: every[name] for name in ("embeddings", "distances", "references", "features", "matches", "view")}
    for name in ("gradcam", "integrated", "path_layercam", "contrastive"):
        for layer in ("layer1", "layer3"):
            tasks[f"{name} at {layer}"] = partial(explain, network, images, 0.5, method=name, layer=layer, steps=2)
    tasks["stride 16"] = partial(explain, network, images, 0.5, output_stride=16)
    tasks["shuffled"] = lambda: [explain(other, images, 0.5).evidence for _, other in randomised(network)]
    check_together(tasks)
    assert not hooks_on(network)


def test_occlusion_all_verdicts_and_chance():
    network, images = Cut(convolutions().eval(), "4"), torch.randn(1, 2, 3, 16, 16)
    pair = explain(network, images, 0.5)
    tasks = {
        "occlusion": partial(explain, network, images, 0.5, method="occlusion"),
        "all verdicts": lambda: judge_all(network, {"one": pair, "other": explain(network, images, 0.5)}),
        "verdict": lambda: judge(network, pair).blind.both,
        "embeddings": partial(_embedded, network, images.flatten(0, 1)),
    }
    check_together(tasks)


def test_layers_of_one_module_are_cut_at_once():
    """Two Cuts at different layers, one module, and the module itself."""
    module, images = convolutions().eval(), torch.randn(3, 2, 3, 32, 32)
    early, late = Cut(module, "0"), Cut(module, "4")
    tasks = {
        "early": partial(explain, early, images, 0.5, method="layercam"),
        "late": partial(explain, late, images, 0.5, method="integrated"),
        "parts": partial(decompose, late, explain(late, images, 0.5)[0]),
        "module": partial(_embedded, module, images[0]),
    }
    check_together(tasks, ROUNDS)


@pytest.mark.parametrize("module", [convolutions, tokens])
def test_the_first_images_come_in_four_threads(module):
    """Layers are measured in all of them at once."""
    layer = "0" if module is convolutions else "block"
    module, images = module().eval(), torch.randn(THREADS, 1, 2, 3, 32, 32)
    alone = [content_of(explain(Cut(module, layer), pair, 0.5)) for pair in images]
    for _ in range(ROUNDS // 4):
        network = Cut(module, layer)
        results = TURNS.together(*(partial(explain, network, pair, 0.5) for pair in images))
        assert [content_of(result) for result in results] == alone


class Resized(nn.Module):
    """Maps of 4 x 4 whatever the size of the images, on which alone it depends what is made of them."""

    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.AdaptiveAvgPool2d(4))
        self.gate = Gate()
        self.end = nn.Linear(6, 5)

    def forward(self, images):
        maps = self.gate(self.map(images))
        grown = F.interpolate(maps, size=images.shape[2:], mode="bicubic").relu()
        return self.end(self.gate(grown).mean(dim=(2, 3)))


@pytest.mark.parametrize("layer", ["map", "map.0"])
def test_threads_bring_images_of_several_sizes(layer):
    """At "map" the maps of all sizes have one size: how large the images were must not be mixed up."""
    torch.manual_seed(0)
    network = Cut(Resized().eval(), layer)
    sizes = (16, 24, 32, 48)
    tasks = {size: partial(explain, network, torch.randn(1, 2, 3, size, size), 0.5) for size in sizes}
    check_together(tasks, ROUNDS)


def test_many_sizes_come_and_go_and_a_map_may_be_read_in_another_thread():
    network = Cut(convolutions().eval(), "4")
    images = torch.randn(1, 3, 16, 16)
    expected = network(images)
    with ThreadPoolExecutor(1) as pool:
        maps = pool.submit(network.features, images).result()
    assert torch.allclose(unit(network.project_features(maps)), expected, atol=1e-6)

    def one_after_the_other(start):
        for side in range(start, start + 80, 4):
            images = torch.randn(1, 3, side, side)
            assert torch.allclose(unit(network.project_features(network.features(images))), network(images), atol=1e-6)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one_after_the_other, range(16, 32, 4)))
    assert len(network._readings) <= 128


def test_modes_come_back_and_statistics_stay():
    """The module is in training mode, but for one part that the user keeps out of it."""
    module = convolutions().train()
    module[3].eval()
    state = content_of(module.state_dict())
    modes = [part.training for part in module.modules()]
    early, late = Cut(module, "0"), Cut(module, "4")
    alone = convolutions().eval()
    images = torch.randn(3, 2, 3, 32, 32)
    expected = [content_of(explain(Cut(alone, layer), images, 0.5)) for layer in ("0", "4")]
    tasks = [partial(explain, network, images, 0.5) for network in (early, late, early, late)]
    for _ in range(ROUNDS):
        results = TURNS.together(*tasks)
        assert [content_of(result) for result in results] == expected * 2
        assert [part.training for part in module.modules()] == modes
    assert content_of(module.state_dict()) == state


def test_a_thread_that_fails_leaves_nothing_to_the_others():
    class Refusing(nn.Module):
        def forward(self, x):
            if x.max() > 50:
                raise RuntimeError("too bright")
            return x

    module = convolutions().train()
    module.insert(6, Refusing())
    network = Cut(module, "0")
    images = torch.randn(2, 2, 3, 32, 32)
    expected = content_of(explain(network, images, 0.5))
    bright = 1e4 * torch.rand(2, 2, 3, 32, 32)
    for _ in range(ROUNDS):
        tasks = [partial(explain, network, given, 0.5) for given in (images, bright, images, bright)]
        first, failed, second, failed_too = TURNS.together(*tasks)
        assert content_of(first) == content_of(second) == expected
        for error in (failed, failed_too):
            assert isinstance(error, ValueError)
            assert "too bright" in str(error)
    assert not hooks_on(module)
    assert all(part.training for part in module.modules())


def test_a_module_that_cannot_be_evaluated_leaves_no_mode_behind():
    class Stubborn(nn.Linear):
        failing = True

        def train(self, mode=True):
            if not mode and self.failing:
                raise RuntimeError("always in training")
            return super().train(mode)

    module = nn.Sequential(nn.Dropout(), Stubborn(2, 2))
    with pytest.raises(RuntimeError, match="always in training"), evaluating(module):
        pass
    assert module[0].training
    module[1].failing = False
    module.eval()
    with evaluating(module):
        pass
    assert not module[0].training


def test_modes_of_gradients_are_of_each_thread():
    """One thread explains, one in inference mode, one without gradients, and one takes gradients of the weights."""
    module = convolutions().eval()
    network, images = Cut(module, "0"), torch.randn(3, 2, 3, 32, 32)
    weights = list(module.parameters())

    def gradients():
        assert torch.is_grad_enabled()
        found = torch.autograd.grad(module(images[0]).square().sum(), weights)
        assert torch.is_grad_enabled()
        return found

    def inside(mode):
        with mode():
            unit(network.project_features(network.features(images[0])))
            assert not torch.is_grad_enabled()
            result = explain(network, images, 0.5)
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
            assert not torch.is_grad_enabled()
        return result

    tasks = {
        "gradients": gradients,
        "plain": partial(explain, network, images, 0.5),
        "no_grad": partial(inside, torch.no_grad),
        "inference": partial(inside, torch.inference_mode),
    }
    check_together(tasks, ROUNDS)


def test_hooks_that_are_set_at_once_are_all_there(monkeypatch):
    """torch reads and raises one number for all hooks: threads that meet between the two get the same."""
    handle = torch.utils.hooks.RemovableHandle
    met = Barrier(THREADS)

    class Meeting(type):
        @property
        def next_id(cls):
            number = handle.next_id
            with suppress(BrokenBarrierError):
                met.wait(SHORT)
            return number

    class MeetingHandle(handle, metaclass=Meeting):
        def __init__(self, hooks, *, extra_dict=None):
            number = type(self).next_id
            super().__init__(hooks, extra_dict=extra_dict)
            self.id = number
            handle.next_id = number + 1

    monkeypatch.setattr(torch.nn.modules.module, "RemovableHandle", MeetingHandle)
    module = nn.Identity()
    all_set = Barrier(THREADS)

    def run(_):
        seen = []
        with hooked(module, lambda *call: seen.append(call)):
            all_set.wait(PATIENCE)
            module(torch.zeros(1))
            all_set.wait(PATIENCE)
        return len(seen)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(run, range(THREADS))) == [1] * THREADS
    assert not module._forward_hooks


def test_copies_have_neither_hooks_nor_modes_of_other_threads():
    network, images = siamese()
    network.train()
    method = partial(explain, network, images, 0.5, layer="layer2")
    expected = content_of(method())

    def copies():
        assert hooks_on(network)  # of the other thread, which waits at a gate before the layer
        assert not network.training
        return [dilated(network, 16), fully_random(network), folded(network, torch.float32)]

    explanation, (finer, shuffled, fast) = TURNS.together(method, copies)
    assert content_of(explanation) == expected
    for copy in (finer, shuffled, fast):
        assert not hooks_on(copy)
        pickle.dumps(copy)
    assert all(part.training for part in [*finer.modules(), *shuffled.modules()])
    assert not fast.training


def test_a_network_is_copied_while_another_thread_sets_hooks():
    """Copying goes through the hooks of a module one by one: none may come meanwhile."""
    copying, changed = Event(), Event()

    class Slow:
        """A hook of the user's, which takes its time to be copied."""

        def __call__(self, module, inputs, output):
            return None

        def __deepcopy__(self, memo):
            copying.set()
            changed.wait(SHORT)
            return self

    module = nn.Identity()
    module.register_forward_hook(Slow())
    module.register_forward_hook(Slow())

    def set_hook():
        copying.wait(PATIENCE)
        with hooked(module, Slow()):
            changed.set()

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(set_hook)
        copied = pool.submit(copy_of, module).result()
        other.result()
    assert len(hooks_on(copied)) == len(hooks_on(module)) == 2


def test_a_layer_that_is_used_for_the_first_time_is_noted_beside_what_others_read():
    network, images = network_and_images()
    network.features(images[0], "layer1")
    readings = network._readings
    network.features(images[0], "layer2")
    assert list(readings) == ["layer1"]  # which another thread may be copying
    assert list(network._readings) == ["layer1", "layer2"]


@pytest.fixture
def gated(calibrated):
    """The calibrated network of the tiny dataset, with gates."""
    for path in ("maxpool", "layer3"):
        calibrated.network.backbone.get_submodule(path).register_forward_pre_hook(_make_way)
    return calibrated


def test_a_trained_network_on_image_files(gated, tmp_path):
    splits = gated.load_splits()
    pairs = choose_pairs(splits, 3)
    image = pairs[0][0]
    explanation = gated.explain(*pairs)
    names = [gated.method, "gradcam, last"]
    methods = {name: methods_of(gated.settings)[name] for name in names}
    tasks = {
        "explain": partial(gated.explain, *pairs),
        "gradcam++": partial(gated.explain, *pairs, method="gradcam++", layer="layer2"),
        "by all": partial(gated.explain_by_all, *pairs[:1]),
        "donors": partial(gated.donors, explanation[0]),
        "distances": partial(gated.distances, splits, splits.test_pairs),
        "compared": lambda: [replace(row, seconds_per_pair=0) for row in compare(methods, gated, pairs, splits)],
        "suspects": partial(find_suspects, gated, splits),
        "sanity": partial(sanity_curves, methods, gated, pairs[:2]),
        "gallery": partial(gallery, gated, splits.folder.root / "red"),
        "similar": partial(most_similar, gated, image, 2),
        "viewer": lambda: view(gated.explain(*pairs[:1])),
        "grid": lambda: grid(gated.explain(*pairs), gated.network),
        "folder": partial(explain_folder, gated, pairs, tmp_path / "maps", judged=True),
        "other folder": lambda: explain_folder(gated, pairs, tmp_path / "other"),
        "images": partial(gated.load_pairs, *pairs),
    }
    check_together(tasks)
    assert not hooks_on(gated.network)


def test_any_network_on_image_files(tmp_path):
    write_images(tmp_path / "images", 6, (24, 24))
    paths = sorted(str(path) for path in (tmp_path / "images").iterdir())

    def load(path):
        return torch.from_numpy(read_image(path)).permute(2, 0, 1) / 127.5 - 1

    files = FromFiles(Cut(convolutions().eval(), "4"), load, 0.3)
    pairs = list(zip(paths[:3], paths[3:], strict=True))
    tasks = {
        "explain": partial(files.explain, *pairs),
        "gallery": partial(gallery, files, tmp_path / "images"),
        "similar": lambda: most_similar(files, paths[0], 2, gallery(files, tmp_path / "images")),
        "folder": partial(explain_folder, files, pairs, tmp_path / "maps"),
    }
    check_together(tasks, rounds=3)


def test_one_folder_is_filled_by_four_threads(tmp_path):
    write_images(tmp_path / "images", 6, (24, 24))
    paths = sorted(str(path) for path in (tmp_path / "images").iterdir())
    pairs = [*zip(paths[:3], paths[3:], strict=True), (paths[0], paths[3])]

    def fill(folder, method="gradcam"):
        files = FromFiles(Cut(module, "4"), read_small, 0.3, method=method)
        return explain_folder(files, pairs, tmp_path / folder)

    def read_small(path):
        return torch.from_numpy(read_image(path)).permute(2, 0, 1) / 255

    module = convolutions().eval()
    alone = content_of(fill("alone"))
    assert [content_of(one) for one in TURNS.together(*[partial(fill, "same")] * THREADS)] == [alone] * THREADS
    for number in range(ROUNDS // 4):
        with ThreadPoolExecutor(2) as pool:
            results = [pool.submit(fill, f"mixed {number}", method) for method in ("gradcam", "layercam")]
        errors = [one.exception() for one in results if one.exception()]
        assert [type(error) for error in errors] == [DataError]
        assert "holds maps of other settings (explanation)" in str(errors[0])


def test_labels_are_judged_by_one_thread_at_a_time(monkeypatch):
    """cleanlab works in global variables: where two threads meet in it, one gets the other's labels."""
    meet = Barrier(2)
    prune = cleanlab.filter._prune_by_count

    def late(arguments):
        with suppress(BrokenBarrierError):
            meet.wait(SHORT)
        return prune(arguments)

    datasets = [_labelled(count, seed) for seed, count in enumerate((40, 30))]
    alone = [judge_labels(*dataset) for dataset in datasets]
    assert any(table["label issue"].any() for table in alone)
    monkeypatch.setattr(cleanlab.filter, "_prune_by_count", late)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda dataset: judge_labels(*dataset), datasets))
    assert content_of(results) == content_of(alone)


def _labelled(count, seed):
    """Embeddings of two classes, of which some have the wrong label."""
    random = np.random.default_rng(seed)
    classes = np.arange(count) % 2
    embeddings = np.stack([1 - classes, classes], axis=1) + 0.2 * random.normal(size=(count, 2))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = np.where(random.random(count) < 0.2, 1 - classes, classes)
    return embeddings.astype(np.float32), np.array(["a", "b"])[labels], np.array([f"{n}.png" for n in range(count)])


@cache
def _explained():
    network, images = network_and_images()
    explanation = explain(network, images, 0.5, method="integrated", layer="layer2")
    return network, explanation, judge(network, explanation)


def test_figures_are_drawn_in_four_threads():
    """pyplot gives threads that start a figure at once one figure together."""
    network, explanation, verdict = _explained()
    pair, matches = explanation[0], decompose(network, explanation[0])
    change = smallest_edit(network, pair)
    answer = ask(network, matches, box1=(0.1, 0.4, 0.5, 0.8))
    tasks = {
        "images": partial(images_figure, pair),
        "maps": partial(figure, pair, verdict[0]),
        "matches": partial(matches_figure, matches),
        "region": partial(region_figure, answer),
        "change": partial(edit_figure, change),
        "sanity": partial(sanity_figure, {"a": {"top": 0.1, "all": 0.2}}),
        "nothing": partial(nothing, "Nothing.", "nothing"),
    }
    alone = {name: content_of(task()) for name, task in tasks.items()}
    begin = Barrier(THREADS)

    def run(number):
        begin.wait(PATIENCE)
        return {name: content_of(tasks[name]()) for name in ["nothing", *list(tasks)[number::THREADS]]}

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(run, range(THREADS)):
            assert found == {name: alone[name] for name in found}
    assert not hasattr(nothing("Nothing.", "nothing"), "number")  # of pyplot's figures


def test_images_are_read_in_four_threads(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (48, 40, 3), dtype=np.uint8)
    for ending in ("jpg", "png", "bmp", "webp", "tif", "heic"):
        Image.fromarray(pixels).save(tmp_path / f"a.{ending}")
    Image.fromarray(random.integers(0, 65536, (48, 40), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(random.random((48, 40), dtype=np.float32)).save(tmp_path / "float.tif")
    paths = sorted(tmp_path.iterdir())
    alone = [content_of(read_image(path)) for path in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda path: content_of(read_image(path)), paths * ROUNDS)
        assert list(found) == alone * ROUNDS
