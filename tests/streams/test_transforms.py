import pickle
from itertools import pairwise

import pytest
import torch
from torchvision.transforms.functional import rotate

from lightning_cl.errors import InputError
from lightning_cl.streams import RandomCropFlip, TensorData, corruption, permutation, rotation
from lightning_cl.streams.corruptions import KINDS
from lightning_cl.streams.counter_noise import normal, uniform
from lightning_cl.streams.datasets import digits

IDS = torch.arange(40)


def images(channels: int = 1) -> torch.Tensor:
    """Real digits, 16x16."""
    x = digits().train.batch(IDS)[0]
    return torch.nn.functional.interpolate(x, size=(16, 16), mode="bilinear").repeat(1, channels, 1, 1)


def test_permutation_is_one_fixed_reordering_of_all_values():
    x = torch.arange(2 * 3 * 4 * 4).float().view(2, 3, 4, 4)
    one, other = permutation(2, seed=1)
    assert torch.equal(one(x, IDS)[0].flatten().sort().values, x[0].flatten())
    assert torch.equal(one(x, IDS)[1] - one(x, IDS)[0], torch.full((3, 4, 4), 48.0))
    assert not torch.equal(one(x, IDS), other(x, IDS))
    assert torch.equal(one(x, IDS), permutation(5, seed=1)[0](x, IDS))
    assert not torch.equal(one(x, IDS), permutation(1, seed=2)[0](x, IDS))
    assert torch.equal(permutation(2, first_identity=True)[0](x, IDS), x)
    assert not torch.equal(one(x, IDS), x)


@pytest.mark.parametrize("angle", [30, 90, -45, 200])
@pytest.mark.parametrize("size", [(16, 16), (16, 11)])
def test_rotation_is_torchvisions(angle, size):
    x = images()[:4, :, : size[0], : size[1]]
    from torchvision.transforms import InterpolationMode

    oracle = rotate(x, angle, InterpolationMode.BILINEAR)
    assert torch.allclose(rotation([angle])[0](x, IDS[:4]), oracle, atol=1e-4)


def test_no_rotation_is_the_image():
    x = images()
    assert rotation([360])[0](x, IDS) is x
    assert rotation([0, 22.5])[1].name == "rotation 22.5"


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions_grow_with_severity(kind, channels):
    x = images(channels)
    ladder = corruption(kind, [0, 1, 2, 3, 4, 5])
    corrupted = [step(x, IDS) for step in ladder]
    assert torch.equal(corrupted[0], x)
    distances = [float((one - x).square().mean().sqrt()) for one in corrupted]
    assert all(later > 1.05 * earlier for earlier, later in pairwise(distances)), distances
    assert distances[1] > 0.01
    for one in corrupted:
        assert one.shape == x.shape
        assert one.dtype == torch.float32
        assert 0 <= one.min() <= one.max() <= 1


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_corruption_is_a_function_of_the_sample(kind):
    x, (step,) = images(), corruption(kind, 3, seed=5)
    state = torch.get_rng_state()
    whole = step(x, IDS)
    assert torch.equal(state, torch.get_rng_state())
    some = torch.tensor([31, 2, 17])
    assert torch.allclose(step(x[some], IDS[some]), whole[some], atol=1e-6)
    assert torch.equal(pickle.loads(pickle.dumps(step))(x, IDS), whole)


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "fog"])
def test_noise_differs_between_samples_and_seeds(kind):
    x = images()[:1].expand(2, -1, -1, -1)
    noisy = corruption(kind, 3)[0](x, torch.tensor([0, 1]))
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy, corruption(kind, 3, seed=1)[0](x, torch.tensor([0, 1])))


def test_training_and_evaluation_passes_repeat_and_parts_differ():
    x, y = images(), torch.zeros(40)
    (step,) = corruption("gaussian_noise", 3)
    train, test = TensorData(x, y, step), TensorData(x, y, step, first_id=40)
    assert torch.equal(train.batch(IDS, epoch=0)[0], train.batch(IDS, epoch=3, augment=True)[0])
    assert not torch.equal(train.batch(IDS)[0], test.batch(IDS)[0])


def test_blur_is_the_gaussian_of_torchvision():
    from torchvision.transforms.functional import gaussian_blur

    x = images()
    sigma = 0.3 + KINDS["blur"][1][2] * 16
    radius = round(3 * sigma)
    oracle = gaussian_blur(x, [2 * radius + 1] * 2, [sigma, sigma])
    inner = (..., slice(radius, -radius), slice(radius, -radius))  # borders: theirs are mirrored, ours repeated
    assert torch.allclose(corruption("blur", 3)[0](x, IDS)[inner], oracle[inner], atol=1e-5)


def test_counter_noise_has_the_right_distribution():
    like = torch.empty(200, 1000)
    ids = torch.arange(200)
    u, z = uniform(like, ids, 3), normal(like, ids, 3)
    assert u.min() >= 0
    assert u.max() < 1
    # means of 200,000 draws: standard errors are 0.0006 and 0.0022
    assert abs(u.mean() - 0.5) < 0.003
    assert abs(u.var() - 1 / 12) < 0.001
    assert abs(z.mean()) < 0.01
    assert abs(z.var() - 1) < 0.02
    assert abs((z**4).mean() - 3) < 0.15
    assert abs(torch.corrcoef(u[:2])[0, 1]) < 0.15
    assert abs((u[:, 1:] * u[:, :-1]).mean() - 0.25) < 0.003
    assert torch.isfinite(z).all()


def test_crop_and_flip_pick_from_the_padded_image():
    x, augment = images(3), RandomCropFlip(padding=2)
    augmented = augment(x, IDS, 9)
    padded = torch.nn.functional.pad(x, [2] * 4)
    seen = set()
    for before, after in zip(padded, augmented, strict=True):
        options = {
            (top, left, flip): window.flip(2) if flip else window
            for top in range(5)
            for left in range(5)
            for flip in (False, True)
            for window in [before[:, top : top + 16, left : left + 16]]
        }
        matches = [place for place, window in options.items() if torch.equal(window, after)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 20
    some = torch.tensor([5, 1])
    assert torch.equal(augment(x[some], IDS[some], 9), augmented[some])
    assert not torch.equal(augment(x, IDS, 10), augmented)
    data = TensorData(x, torch.zeros(40), augment=augment)
    epochs = [data.batch(IDS, epoch=epoch, augment=True)[0] for epoch in (0, 1, 0)]
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    only_crop = RandomCropFlip(padding=0, flip=False)
    assert torch.equal(only_crop(x, IDS, 1), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("snow", 3), r"^corruption kind='snow'; expected one of gaussian_noise, .*HINT: set kind="),
        (("fog", 6), r"^severity=6; expected an integer from 0 \(clean\) to 5\. HINT: set severity=3"),
        (("fog", -1), r"^severity=-1; expected an integer from 0"),
        (([], 1), r"^kind=\[\], severity=1; expected at least one of each\. HINT: choose kinds from gaussian_noise"),
        (("fog", []), r"^kind='fog', severity=\[\]; expected at least one of each"),
    ],
)
def test_wrong_corruptions_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        corruption(*arguments)
