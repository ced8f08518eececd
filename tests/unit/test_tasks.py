"""Tasks against loops over single images and single words."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from reproduce import tasks
from reproduce.data import ImageData, Images, WordData
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.tasks.image_classification import ImageClassification, crop_flip
from reproduce.tasks.language_modeling import LanguageModeling, streams
from reproduce.training.step import Step

CPU = torch.device("cpu")
N_WORDS = 11


def image_data(n: int = 30, shape: tuple[int, int, int] = (2, 4, 6), statistics: bool = True) -> ImageData:
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Images:
        pixels = torch.randint(0, 256, (size, *shape), generator=generator, dtype=torch.uint8)
        return Images(pixels, torch.randint(0, 3, (size,), generator=generator))

    known = Statistics(mean=(0.3, 0.6), std=(0.2, 0.4), source="made up") if statistics else None
    card = DatasetCard.model_construct(name="tiny", statistics=known)
    return ImageData(card=card, train=split(n), validation=None, test=split(7), classes=3, origin="here")


def image_task(data: ImageData, task: dict[str, Any] | None = None, seed: int = 0, **recipe: Any) -> Any:
    options = {"width": 5, "depth": 1}
    spec = {"kind": "image_classification", "dataset": "tiny", "model": "mlp", "model_options": options}
    return tasks.build(
        TaskSpec.model_validate(spec | (task or {})),
        Recipe.model_validate({"epochs": 1, "batch_size": 6, "learning_rate": 0.1, **recipe}),
        data,
        Generators.seeded(seed, CPU),
        CPU,
    )


def word_data(n: int = 95) -> WordData:
    generator = torch.Generator().manual_seed(1)
    train, validation, test = (torch.randint(0, N_WORDS, (size,), generator=generator) for size in (n, 50, 41))
    vocabulary = tuple("abcdefghijk")
    card = DatasetCard.model_construct(name="tiny")
    return WordData(card=card, train=train, validation=validation, test=test, vocabulary=vocabulary, origin="here")


def word_task(data: WordData, task: dict[str, Any] | None = None, **recipe: Any) -> Any:
    options = {"hidden": 4, "layers": 2}
    spec = {"kind": "language_modeling", "dataset": "tiny", "model": "lstm", "model_options": options}
    content = {"epochs": 1, "batch_size": 3, "learning_rate": 0.1, "window": 4, "eval_batch_size": 2, **recipe}
    return tasks.build(
        TaskSpec.model_validate(spec | (task or {})),
        Recipe.model_validate(content),
        data,
        Generators.seeded(0, CPU),
        CPU,
    )


def log_softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    total = math.log(sum(math.exp(value - largest) for value in logits)) + largest
    return [value - total for value in logits]


def test_crop_flip_is_the_loop_over_images() -> None:
    n, height, width = 64, 5, 9
    images = torch.rand((n, 3, height, width))
    found = crop_flip(images, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    tops, lefts = torch.randint(0, 9, (2, n, 1), generator=generator).squeeze(2).tolist()
    flips = (torch.rand((n, 1), generator=generator) < 0.5).flatten().tolist()
    assert {min(tops), min(lefts), max(tops), max(lefts)} == {0, 8}
    assert 0 < sum(flips) < n
    for index in range(n):
        padded = np.pad(images[index].numpy(), ((0, 0), (4, 4), (4, 4)))
        crop = padded[:, tops[index] : tops[index] + height, lefts[index] : lefts[index] + width]
        expected = crop[:, :, ::-1] if flips[index] else crop
        np.testing.assert_array_equal(found[index].numpy(), expected)


def test_augmentation_leaves_other_streams_alone() -> None:
    data = image_data()
    plain, augmented = image_task(data), image_task(data, augment="crop_flip")
    for task in (plain, augmented):
        task.start_epoch()
        task.loss(torch.tensor(0))
    states = [task.generators.state_dict() for task in (plain, augmented)]
    same = {name: torch.equal(states[0][name], states[1][name]) for name in states[0]}
    assert same == {name: name != "augmentation" for name in states[0]}


def test_an_epoch_sees_every_example_once_and_leaves_the_rest() -> None:
    task = image_task(image_data(n=20))
    assert task.steps_per_epoch == 3  # of 6, and 2 examples left out
    task.start_epoch()
    first = task.order.clone()
    assert sorted(first.tolist()) == list(range(20))
    task.start_epoch()
    assert first.tolist() != task.order.tolist()


def test_loss_of_a_batch_is_the_loop_over_its_images() -> None:
    data = image_data()
    task = image_task(data)
    task.start_epoch()
    for index in (0, 4):
        chosen = task.order[6 * index : 6 * index + 6].tolist()
        total = 0.0
        for example in chosen:
            pixels = data.train.images[example].double() / 255
            image = (pixels - torch.tensor([0.3, 0.6]).view(2, 1, 1)) / torch.tensor([0.2, 0.4]).view(2, 1, 1)
            logits = task.model(image.float()[None])[0].tolist()
            total -= log_softmax(logits)[int(data.train.labels[example])]
        assert task.loss(torch.tensor(index)).item() == pytest.approx(total / 6, rel=1e-5)


def test_mixup_is_the_computation_by_hand() -> None:
    data = image_data()
    task = image_task(data, mixup=0.4)
    task.start_epoch()
    generators = Generators.seeded(0, CPU)
    order = torch.randperm(30, generator=generators.order).tolist()
    uniform = torch.rand(5, generator=generators.order, dtype=torch.float64).tolist()
    for index in range(5):
        found = task.loss(torch.tensor(index)).item()
        weight = scipy.stats.beta.ppf(uniform[index], 0.4, 0.4)
        partner = torch.randperm(6, generator=generators.augmentation).tolist()
        chosen = order[6 * index : 6 * index + 6]
        images = task.normalise(data.train.images[chosen]).double()
        labels = data.train.labels[chosen].tolist()
        total = 0.0
        for i, j in enumerate(partner):
            mixed = weight * images[i] + (1 - weight) * images[j]
            logs = log_softmax(task.model(mixed.float()[None])[0].tolist())
            total -= weight * logs[labels[i]] + (1 - weight) * logs[labels[j]]
        assert found == pytest.approx(total / 6, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 0.7, 1.0])
def test_mixup_weights_follow_their_beta_distribution(alpha: float) -> None:
    data = image_data(n=3000, shape=(2, 1, 1))
    task = image_task(data, mixup=alpha, batch_size=1)
    task.start_epoch()
    assert len(task.mixing.weights) == 3000
    outcome = scipy.stats.kstest(task.mixing.weights.double().numpy(), scipy.stats.beta(alpha, alpha).cdf)
    assert outcome.pvalue > 0.01
    wrong = scipy.stats.kstest(task.mixing.weights.double().numpy(), scipy.stats.beta(alpha + 0.2, alpha + 0.2).cdf)
    assert wrong.pvalue < 0.01  # the test can tell
    before = task.mixing.weights.clone()
    task.start_epoch()
    assert not torch.equal(before, task.mixing.weights)


def normalised(kind: str | None, statistics: bool = True, **task: Any) -> tuple[np.ndarray, np.ndarray]:
    """All test images as the network sees them, and the training images as numbers in [0, 1]."""
    data = image_data(statistics=statistics)
    built = image_task(data, {"normalise": kind, **task})
    return built.normalise(data.test.images).numpy(), data.train.images.numpy().astype(np.float64) / 255


def test_normalisation_kinds() -> None:
    data = image_data()
    raw = data.test.images.numpy().astype(np.float64)
    near: Any = {"rtol": 1e-5, "atol": 1e-5}
    for kind in ("channel", None):
        found, _ = normalised(kind)
        mean, std = np.array([0.3, 0.6]).reshape(2, 1, 1), np.array([0.2, 0.4]).reshape(2, 1, 1)
        np.testing.assert_allclose(found, (raw / 255 - mean) / std, **near)
    found, train = normalised("channel", statistics=False)
    mean, std = train.mean((0, 2, 3)).reshape(2, 1, 1), train.std((0, 2, 3)).reshape(2, 1, 1)
    np.testing.assert_allclose(found, (raw / 255 - mean) / std, **near)
    found, train = normalised("image_channel")
    deviations = np.array([[np.std(channel, ddof=1) for channel in image] for image in train])
    mean = train.mean((0, 2, 3)).reshape(2, 1, 1)
    np.testing.assert_allclose(found, (raw / 255 - mean) / deviations.mean(0).reshape(2, 1, 1), **near)
    found, train = normalised("mean_image")
    np.testing.assert_allclose(found, raw / 255 - train.mean(0), **near)
    found, train = normalised("pixel")
    np.testing.assert_allclose(found, (raw / 255 - train.mean(0)) / train.std(0), **near)
    np.testing.assert_array_equal(normalised("binary")[0], raw >= 128)
    np.testing.assert_allclose(normalised("unit")[0], raw / 255, **near)


def test_statistics_are_those_of_the_examples_trained_on() -> None:
    found, train = normalised("mean_image", validation=10, train_examples=15)
    raw = image_data().test.images.numpy() / 255
    np.testing.assert_allclose(found, raw - train[:15].mean(0), rtol=1e-5, atol=1e-5)


def test_a_constant_pixel_stays_finite() -> None:
    data = image_data()
    data.train.images[:, 1, 2, 3] = 77
    found = image_task(data, {"normalise": "pixel"}).normalise(data.test.images)
    assert torch.isfinite(found).all()


def test_held_out_are_the_last_examples() -> None:
    data = image_data()
    task = image_task(data, {"validation": 8, "train_examples": 20})
    assert torch.equal(task.splits["validation"].images, data.train.images[22:])
    assert torch.equal(task.splits["validation"].labels, data.train.labels[22:])
    assert torch.equal(task.train.images, data.train.images[:20])
    assert torch.equal(task.splits["test"].images, data.test.images)
    assert set(image_task(data).splits) == {"test"}


@pytest.mark.parametrize(
    ("task", "recipe", "expected"),
    [
        ({"validation": 30}, {}, "validation = 30 leaves none of the 30 examples"),
        ({"train_examples": 31}, {}, "train_examples = 31: there are only 30"),
        ({}, {"batch_size": 31}, "batch_size 31 is larger than the 30 examples"),
        ({}, {"selection": "best_validation"}, "'tiny' has no validation split"),
        ({}, {"window": 5}, "windows are of words"),
        ({"model": "lstm", "model_options": {"hidden": 3}}, {}, "takes words"),
        ({"kind": "image_clasification"}, {}, "did you mean image_classification"),
    ],
)
def test_images_refuse(task: dict[str, Any], recipe: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        image_task(image_data(), task, **recipe)


def test_evaluation_is_the_loop_over_images() -> None:
    data = image_data()
    task = image_task(
        data, {"validation": 8, "model_options": {"width": 5, "depth": 1, "dropout": 0.5}}, eval_batch_size=3
    )
    found = task.evaluate()
    task.model.eval()
    for name, split in (("validation", task.splits["validation"]), ("test", data.test)):
        loss, wrong = 0.0, 0
        for image, label in zip(task.normalise(split.images), split.labels.tolist(), strict=True):
            logits = task.model(image[None])[0].tolist()
            loss -= log_softmax(logits)[label]
            wrong += logits.index(max(logits)) != label
        n = len(split.labels)
        assert found[name]["loss"] == pytest.approx(loss / n, rel=1e-5)
        assert found[name]["error"] == pytest.approx(100 * wrong / n)


def test_evaluation_comes_back_to_training() -> None:
    for task in (image_task(image_data()), word_task(word_data())):
        task.model.train()
        task.evaluate()
        assert task.model.training


def test_streams() -> None:
    found = streams(torch.arange(14), 4)
    assert found.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    with pytest.raises(UserError, match="7 tokens are too few for 4 streams"):
        streams(torch.arange(7), 4)


def test_windows_predict_the_next_word_and_the_short_last_one_is_left_out() -> None:
    task = word_task(word_data(n=95))  # 3 streams of 31 words: 30 predictions, 7 windows of 4
    assert task.steps_per_epoch == 7
    table = word_data(n=95).train[:93].view(3, 31)
    seen: list[Tensor] = []
    forward = task.model.forward

    def spy(tokens: Tensor, state: Any) -> Any:
        seen.append(tokens)
        return forward(tokens, state)

    task.model.forward = spy
    task.start_epoch()
    for index in range(task.steps_per_epoch):
        task.loss(torch.tensor(index))
    assert torch.equal(torch.cat(seen).T, table[:, :28])


def windows_and_one_pass(task: Any, tokens: Tensor) -> tuple[list[float], list[float]]:
    """The losses of all windows, and the same from one pass over everything."""
    task.start_epoch()
    windows = [task.loss(torch.tensor(index)).item() for index in range(task.steps_per_epoch)]
    logits, _ = task.model(tokens[:-1], task.model.initial_state(tokens.shape[1]))
    expected = []
    for index in range(task.steps_per_epoch):
        total = 0.0
        for row in range(4 * index, 4 * index + 4):
            for column in range(tokens.shape[1]):
                total -= log_softmax(logits[row, column].tolist())[int(tokens[row + 1, column])]
        expected.append(total / (4 * tokens.shape[1]))
    return windows, expected


def test_the_state_is_carried_across_windows() -> None:
    task = word_task(word_data())
    windows, expected = windows_and_one_pass(task, task.train)
    assert windows == pytest.approx(expected, rel=1e-5)
    again, _ = windows_and_one_pass(task, task.train)  # a new epoch begins from zeros
    assert again == windows


def test_no_gradient_reaches_back_beyond_the_window() -> None:
    task = word_task(word_data())
    task.start_epoch()
    task.loss(torch.tensor(0))
    assert all(not part.requires_grad for part in task.state)
    assert any(part.abs().max() > 0 for part in task.state)


def test_perplexity_divides_by_rows_minus_one() -> None:
    data = word_data()
    task = word_task(data)
    found = task.evaluate()
    task.model.eval()
    for name, words, rows in (("validation", data.validation, 25), ("test", data.test, 20)):
        total, n_predictions = 0.0, 0
        for stream in range(2):  # word by word, one stream after the other
            state = task.model.initial_state(1)
            column = words[stream * rows : (stream + 1) * rows]
            for row in range(rows - 1):
                logits, state = task.model(column[row].view(1, 1), state)
                total -= log_softmax(logits[0, 0].tolist())[int(column[row + 1])]
                n_predictions += 1
        assert n_predictions == 2 * (rows - 1)
        assert found[name]["loss"] == pytest.approx(total / n_predictions, rel=1e-5)
        assert found[name]["perplexity"] == pytest.approx(math.exp(total / n_predictions), rel=1e-5)


def test_bits_per_character_are_the_loss_to_the_base_2_and_need_characters() -> None:
    data = word_data()
    of_characters = WordData(**{**vars(data), "card": DatasetCard.model_construct(name="tiny", format="characters")})
    for found in word_task(of_characters, {"symbols": "characters"}).evaluate().values():
        assert found["bits_per_character"] == pytest.approx(math.log2(found["perplexity"]))
    assert "bits_per_character" not in word_task(data).evaluate()["test"]
    of_words = WordData(**{**vars(data), "card": DatasetCard.model_construct(name="tiny", format="text")})
    with pytest.raises(UserError, match=r"symbols = 'characters' needs a dataset of format 'characters'.*'text'"):
        word_task(of_words, {"symbols": "characters"})


def test_errors_of_tokens_are_counted_one_by_one() -> None:
    data = word_data()
    task = word_task(data, {"token_errors": True})
    found = task.evaluate()
    task.model.eval()
    for name, words, rows in (("validation", data.validation, 25), ("test", data.test, 20)):
        wrong = 0
        for stream in range(2):
            state = task.model.initial_state(1)
            column = words[stream * rows : (stream + 1) * rows].tolist()
            for read, comes in itertools.pairwise(column):
                logits, state = task.model(torch.tensor([[read]]), state)
                values = logits.flatten().tolist()
                wrong += values.index(max(values)) != comes
        assert found[name]["error"] == pytest.approx(100 * wrong / (2 * (rows - 1)))
        assert 50 < found[name]["error"] < 100
    assert "error" not in word_task(data).evaluate()["test"]


def test_evaluation_leaves_the_carried_state() -> None:
    task = word_task(word_data())
    task.start_epoch()
    task.loss(torch.tensor(0))
    before = [part.clone() for part in task.state]
    task.evaluate()
    task.forward_site_batch()
    assert all(map(torch.equal, before, task.state))


@pytest.mark.parametrize(
    ("task", "recipe", "expected"),
    [
        ({}, {"window": None}, "needs recipe.window"),
        ({}, {"mixup": 0.2}, "is of (classes|images)"),
        ({}, {"cutmix": 0.2}, "is of (classes|images)"),
        ({}, {"augment": "crop_flip"}, "is of (classes|images)"),
        ({"train_examples": 96}, {}, "there are only 95 tokens"),
        ({}, {"window": 31}, "streams .* of 31, and a window of 31 .* needs 32"),
        ({}, {"eval_batch_size": 30}, "too few for 30 streams"),
    ],
)
def test_language_refuses(task: dict[str, Any], recipe: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        word_task(word_data(), task, **recipe)


def test_each_kind_of_data_has_its_task() -> None:
    with pytest.raises(UserError, match="'tiny' holds words"):
        image_task(word_data())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'tiny' holds images"):
        word_task(image_data())  # type: ignore[arg-type]
    assert isinstance(image_task(image_data()), ImageClassification)
    assert isinstance(word_task(word_data()), LanguageModeling)


def test_fewer_words_to_train_on() -> None:
    data = word_data()
    assert torch.equal(word_task(data, {"train_examples": 60}).train, streams(data.train[:60], 3))


def test_an_interrupted_epoch_goes_on() -> None:
    for make in (lambda: image_task(image_data(), mixup=0.3), lambda: word_task(word_data())):
        whole, first, second = make(), make(), make()
        whole.start_epoch()
        expected = [whole.loss(torch.tensor(index)).item() for index in range(5)]
        first.start_epoch()
        found = [first.loss(torch.tensor(index)).item() for index in range(2)]
        second.load_state_dict(first.state_dict())
        if hasattr(first, "generators"):  # the loop restores these
            second.generators.load_state_dict(first.generators.state_dict())
        assert found + [second.loss(torch.tensor(index)).item() for index in range(2, 5)] == expected


def windows_of(task: Any) -> list[tuple[int, int]]:
    return [(first, length) for first, length in task.windows.tolist()]


def test_windows_of_random_length_have_the_law_of_the_paper() -> None:
    """One in twenty around 35, the others around 70, with deviation 5: counted, and by their moments."""
    task = word_task(word_data(n=6_000_000), window=70, window_lengths="random")
    assert task.steps_per_epoch == round((2_000_000 - 1) / 68.25)
    lengths = np.array([length for _, length in windows_of(task)][:-2])
    short, n = lengths < 52, len(lengths)
    assert abs(short.sum() - 0.05 * n) < 4 * math.sqrt(n * 0.05 * 0.95)
    for part, centre in ((lengths[short], 35), (lengths[~short], 70)):
        assert abs(part.mean() - centre) < 4 * 5 / math.sqrt(len(part))
        assert abs(part.var() / (25 + 1 / 12) - 1) < 4 * math.sqrt(2 / len(part))  # rounding adds a twelfth
    smallest = word_task(word_data(n=60_000), window=8, window_lengths="random")
    assert min(length for _, length in windows_of(smallest)[:-2]) == 5


def test_windows_of_random_length_follow_each_other_to_the_end_and_begin_again() -> None:
    task = word_task(word_data(n=6_000), window=10, window_lengths="random")  # 3 streams: 1,999 predictions
    for _ in range(5):
        expected = 0
        for first, length in windows_of(task):
            assert first == expected
            assert length >= 1
            expected = first + length if first + length < 1999 else 0
        before = task.windows
        task.start_epoch()
        assert not torch.equal(task.windows, before)


def test_losses_of_windows_of_random_length_are_those_of_one_pass_over_the_text() -> None:
    task = word_task(word_data(n=1500), window=10, window_lengths="random")
    task.start_epoch()
    with torch.no_grad():
        logits, _ = task.model(task.train[:-1], task.model.initial_state(3))
    every = torch.nn.functional.cross_entropy(logits.transpose(1, 2), task.train[1:], reduction="none")
    for index, (first, length) in enumerate(windows_of(task)):
        loss = task.loss(torch.tensor(index)).item()
        assert loss == pytest.approx(every[first : first + length].mean().item(), rel=1e-5)
        assert task.rate_factor == length / 10


def test_an_epoch_of_random_windows_is_gone_on_with() -> None:
    whole, resumed = (word_task(word_data(n=600), window=10, window_lengths="random") for _ in range(2))
    for index in range(7):
        whole.loss(torch.tensor(index))
    resumed.start_epoch()  # another epoch's
    resumed.load_state_dict(whole.state_dict())
    assert whole.loss(torch.tensor(7)).item() == resumed.loss(torch.tensor(7)).item()


def test_a_step_of_a_random_window_takes_its_share_of_the_rate() -> None:
    task = word_task(word_data(n=600), window=10, window_lengths="random")
    recipe = Recipe(steps=4, batch_size=3, learning_rate=0.5, window=10, window_lengths="random", weight_decay=0.1)
    step = Step(task, Unregularized(), recipe, Generators.seeded(0, CPU), CPU)
    weight = task.model.decoder.weight
    for index in range(4):
        before = weight.detach().clone()
        step()
        length = task.windows[index, 1].item()
        expected = before - 0.5 * length / 10 * (weight.grad + 0.1 * before)
        torch.testing.assert_close(weight.detach(), expected)
        assert step.schedule.rate == 0.5


def test_a_step_of_random_windows_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """The host reads which window it is, and the warm-up finds that out."""
    task = word_task(word_data(n=600), window=10, window_lengths="random")
    recipe = Recipe(steps=9, batch_size=3, learning_rate=0.5, window=10, window_lengths="random")
    recorded: list[Any] = []

    def make_recording() -> Any:
        recorded.append(1)
        raise AssertionError("a step of random windows was to be recorded")

    step = Step(task, Unregularized(), recipe, Generators.seeded(0, CPU), CPU, make_recording)
    for _ in range(6):
        step()
    assert step.mode == "eager"
    assert recorded == []
    assert "this run's steps are not captured: _local_scalar_dense waits for the device" in caplog.text
