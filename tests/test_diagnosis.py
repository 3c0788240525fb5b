"""A teacher that is wrong is told why, and the cure is the right one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import kdsearch as kd
from kdsearch.data.batches import ArrayData
from kdsearch.networks.teachers import Teacher, weights_hash
from kdsearch.probe.diagnosis import likely_reasons
from kdsearch.tasks import Classification

TRAIN, SEEN, _ = kd.data.digits()
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def fitted(network, data=TRAIN):
    """Trained at a rate that falls to nothing: as good however a machine rounds."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 60)
    for batch in kd.data.shuffled(data, 64, 60, 0):
        optimizer.zero_grad()
        cross_entropy(network(batch.images), batch.target).backward()
        optimizer.step()
        schedule.step()
    return network


def right(network, data=SEEN):
    return (network.eval()(data.images).argmax(1) == data.labels).double().mean().item()


def rate_in(reason):
    return float(reason.split(" the teacher is right on ")[1].split("%")[0]) / 100


def small(channels=1):
    torch.manual_seed(0)
    return kd.networks.small_convnet(8, channels=channels)


def reasons(network, data=SEEN, classes=NAMES):
    return likely_reasons(Teacher(network), data, Classification.of(classes), "cpu")


def coloured(data):
    """Every third class in red, in green, in blue."""
    share = torch.where(data.labels[:, None] % 3 == torch.arange(3), 1.0, 0.3)
    return ArrayData(data.images * share[:, :, None, None], data.labels)


@pytest.fixture(scope="module")
def good():
    return fitted(small()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def centred():
    """Trained on images with mean and deviation 0.5."""
    return fitted(kd.networks.Normalised(small(), [0.5], [0.5])).network.eval()


class Knows(nn.Module):
    """Tells images that it knows by the nearest one, the more surely the nearer, once their normalisation is undone."""

    def __init__(self, data, mean, std):
        super().__init__()
        self.data, self.mean, self.std = data, *(torch.tensor(numbers)[:, None, None] for numbers in (mean, std))

    def forward(self, images):
        seen = (images * self.std + self.mean).flatten(1)
        distance, nearest = torch.cdist(seen, self.data.images.flatten(1)).min(1)
        return 10 * torch.eye(10)[self.data.labels[nearest]] / (1 + distance[:, None])


class Reordered(nn.Module):
    def __init__(self, network, order):
        super().__init__()
        self.network, self.order = network, order

    def forward(self, images):
        return self.network(images)[:, self.order]


def test_of_a_good_teacher_nothing_is_said(good, centred):
    assert reasons(good) == () and reasons(kd.networks.Normalised(centred, [0.5], [0.5])) == ()


def test_a_diagnosis_changes_nothing_and_is_the_same_again(centred):
    network = kd.networks.Normalised(copy.deepcopy(centred), [0.0], [1.0])
    before = weights_hash(network)
    assert reasons(network) == reasons(network) != ()
    assert weights_hash(network) == before and not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (0.1307, 0.3081, "with MNIST's mean and deviation"),
        (0.5, 0.5, "with mean and deviation 0.5"),
        (0.0, 1 / 255, "with pixels from 0 to 255"),
        (0.304, 0.318, "with the images' own mean and deviation"),
    ],
)
def test_a_missing_normalisation_is_the_one_that_training_had(mean, std, said):
    network = fitted(kd.networks.Normalised(small(), [mean], [std])).network
    (reason,) = reasons(network)
    assert reason.startswith(f"{said} the teacher is right on ")
    cure = eval(reason.split(": ")[1], {"kdsearch": kd, "teacher": network})
    torch.testing.assert_close(cure.mean.item(), mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(cure.std.item(), std, atol=2e-3, rtol=1e-3)
    assert rate_in(reason) == pytest.approx(right(cure), abs=0.01)  # the cure's numbers are rounded
    assert reasons(cure) == ()


def test_of_images_sorted_by_class_all_classes_are_looked_at(good):
    images, labels = torch.cat([SEEN.images, TRAIN.images]), torch.cat([SEEN.labels, TRAIN.labels])
    order = labels.argsort()
    (reason,) = reasons(Reordered(good, [0, 1, 2, 3, 4, 5, 6, 7, 9, 8]), ArrayData(images[order], labels[order]))
    assert " of 512 images" in reason and "its class 8 is the study's 'nine'" in reason
    assert rate_in(reason) == pytest.approx(right(good, ArrayData(images, labels)), abs=0.05)  # of 512 of 1,297


def test_a_normalisation_too_many_is_taken_off(good):
    (reason,) = reasons(kd.networks.Normalised(good, [0.5], [0.5]))
    assert reason.startswith("without its kdsearch.networks.Normalised the teacher") and reason.endswith(
        ": take it off"
    )
    network = fitted(kd.networks.Normalised(small(), [0.4], [0.2]))
    assert reasons(kd.networks.Normalised(network, [0.4], [0.2]))[0].startswith(
        "without its kdsearch.networks.Normalised the"
    )
    twice = kd.networks.Normalised(kd.networks.Normalised(good, [0.5], [0.5]), [0.5], [0.5])
    assert reasons(twice)[0].startswith("without its 2 outer kdsearch.networks.Normalised the")


def test_a_normalisation_with_other_numbers_is_replaced(centred):
    (reason,) = reasons(kd.networks.Normalised(centred, [0.0], [0.1]))
    assert reason.endswith(": kdsearch.networks.Normalised(network, [0.5], [0.5]) in place of the present one")


def test_a_teacher_above_chance_is_told_how_it_would_be_better(good):
    network = kd.networks.Normalised(good, [0.0], [0.45])
    assert 0.2 < right(network) < 0.8
    reason = reasons(network)[0]
    assert f"not on {right(network):.1%}" in reason and reason.startswith("without its kdsearch.networks.Normalised")


def test_an_order_of_the_classes_is_named(good):
    order = [5, 6, 1, 2, 0, 8, 9, 3, 7, 4]
    (reason,) = reasons(Reordered(good, order))
    assert reason.startswith(f"with its classes in another order the teacher is right on {right(good):.1%} of 500")
    named = [part.split(" is the study's ") for part in reason.split(": ")[1].split(";")[0].split(", ")]
    assert len(named) == 3
    assert all(quoted == f"'{NAMES[order[int(k.removeprefix('its class '))]]}'" for k, quoted in named)


def test_two_classes_in_each_other_s_place_are_named(good):
    order = [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]
    (reason,) = reasons(Reordered(good, order))
    assert set(reason.split(": ")[1].split(";")[0].split(", ")) == {
        "its class 3 is the study's 'five'",
        "its class 5 is the study's 'three'",
    }


def test_few_images_do_not_make_an_order_of_many_classes():
    """The best matching of random answers to 40 images of 40 classes is right on most of them."""

    class Random(nn.Module):
        def forward(self, images):
            return torch.randn(len(images), 40, generator=torch.Generator().manual_seed(len(images)))

    data = ArrayData(SEEN.images[:40], torch.arange(40))
    assert reasons(Random(), data, 40) == ()


def test_answers_at_random_have_no_reason():
    class Random(nn.Module):
        def forward(self, images):
            return 20 * torch.randn(len(images), 10, generator=random)

    random = torch.Generator().manual_seed(0)
    assert [reasons(Random()) for _ in range(10)] == [()] * 10


def test_channels_the_other_way_round_are_named():
    train, seen = coloured(TRAIN), coloured(SEEN)
    backwards = ArrayData(train.images.flip(1), train.labels)
    network = fitted(small(3), backwards)
    (reason,) = reasons(network, seen)
    rate = right(network, ArrayData(seen.images.flip(1), seen.labels))
    assert reason.startswith(f"with channels in the order blue, green, red the teacher is right on {rate:.1%} of 500")
    assert reason.endswith(": flip its first layer's weight, weight.flip(1)")
    first = network[0].weight
    first.copy_(first.flip(1))  # the cure
    assert reasons(network, seen) == ()


def test_what_only_helps_together_is_said_together(centred):
    (reason,) = reasons(Reordered(centred, [5, 6, 1, 2, 0, 8, 9, 3, 7, 4]))
    assert reason.startswith("with mean and deviation 0.5 and with its classes in another order the teacher")
    seen = coloured(SEEN)
    backwards = ArrayData(seen.images.flip(1), seen.labels)
    (reason,) = reasons(Knows(backwards, *IMAGENET), seen)
    assert reason.startswith("with ImageNet's mean and deviation and with channels in the order blue, green, red")


@pytest.mark.parametrize(("whose", "mean", "std"), [("ImageNet", *IMAGENET), ("CIFAR-10", *CIFAR)])
def test_of_normalisations_as_good_the_one_with_the_smaller_loss_is_named(whose, mean, std):
    seen = coloured(SEEN).subset(torch.arange(40))
    (reason,) = reasons(Knows(seen, mean, std), seen)
    assert reason.startswith(f"with {whose}'s mean and deviation the teacher is right on ")
    assert reason.endswith(f": kdsearch.networks.Normalised(teacher, {list(mean)}, {list(std)})")


def test_a_small_loss_without_right_answers_is_no_normalisation(centred):
    class Loud(nn.Module):
        def forward(self, images):
            return centred(images) * (100 if images.min() == -1 else 0)

    (reason,) = reasons(Loud())
    rate = right(kd.networks.Normalised(centred, [0.5], [0.5]))
    assert reason.startswith(f"with mean and deviation 0.5 the teacher is right on {rate:.1%} of 500")


@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_never_learned_has_no_weights(seed):
    torch.manual_seed(seed)
    (reason,) = reasons(kd.networks.small_convnet(8))
    assert reason.startswith("the teacher calls") and reason.endswith(": its weights are probably not loaded")


def test_logits_that_are_always_the_same_are_named(good):
    deaf = copy.deepcopy(good)
    deaf[-1].weight.zero_()
    assert reasons(deaf) == ("the teacher's logits do not depend on the image: its weights are probably not loaded",)


def test_probabilities_without_a_preference_are_named():
    torch.manual_seed(0)
    last = nn.Linear(256, 10, bias=False)
    network = nn.Sequential(nn.Flatten(), nn.LayerNorm(256, elementwise_affine=False), last)
    (reason,) = reasons(network)
    assert reason.startswith("the teacher's probabilities are nearly even, 2.") and "of 2.30 nats" in reason


def test_where_nearly_all_images_are_of_one_class_little_can_be_said(good):
    class Favourite(nn.Module):
        def forward(self, images):
            return good(images) + 100 * torch.eye(10)[1]

    data = SEEN.subset(torch.cat([(SEEN.labels == 1).nonzero()[:, 0], torch.arange(3)]))
    assert (data.labels == 1).double().mean() > 0.9
    assert reasons(Favourite(), data) == ()
    assert reasons(Favourite())[0].startswith("the teacher calls 100% of 500 images 'one', and at most 11% have one")
    assert reasons(good, data) == ()  # though MNIST's mean and deviation would make all ones right


def test_labels_outside_the_classes_are_said_first(good):
    for shift, said in ((1, "1 to 10"), (-1, "-1 to 8")):
        data = ArrayData(SEEN.images, SEEN.labels + shift)
        assert reasons(good, data) == (f"its labels go from {said}, its classes from 0 to 9",)


def test_logits_that_are_not_finite_are_wrong_and_no_class(good):
    class Broken(nn.Module):
        def forward(self, images):
            return good(images).masked_fill(images.mean((1, 2, 3))[:, None] > 0.3, torch.nan)

    rate = (Broken()(SEEN.images).isfinite().all(1) & (good(SEEN.images).argmax(1) == SEEN.labels)).double().mean()
    assert 0.2 < rate < 0.8
    assert all(f"not on {rate:.1%}" in reason and "order" not in reason for reason in reasons(Broken()))
    assert reasons(nn.Sequential(good, nn.Threshold(1e9, torch.nan))) == ()
