"""Networks that are made here: the small ones of the digits pair, and ResNets for 32x32 images as for CIFAR-10."""

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from kdsearch.core.errors import KdsearchError

WIDTHS = (16, 32, 64)


def cifar_resnet(depth: int, *, classes: int = 10) -> nn.Module:
    """ResNet-20, 32, 44, 56, 110 for images (B, 3, 32, 32): 0.27, 0.46, 0.66, 0.85, 1.7 million weights.

    Three stages of (depth - 2) / 6 blocks, 16, 32 and 64 channels wide. A shortcut to a wider stage takes every second
    pixel and adds channels of zeros (option A), so that it has no weights. The last layer is `linear`, the stages are
    `layer1` to `layer3`: the names of the common published checkpoints.

    Raises:
        KdsearchError: a depth that is not 6 n + 2.

    Reference:
        He et al., Deep residual learning for image recognition, CVPR 2016, section 4.2

    >>> sum(parameter.numel() for parameter in cifar_resnet(20).parameters())
    269722
    """
    if depth < 8 or depth % 6 != 2:
        near = max(8, round((depth - 2) / 6) * 6 + 2)
        raise KdsearchError(f"cifar_resnet: depth {depth}; allowed: 6 n + 2, such as {near}, 20, 32, 44, 56, 110")
    return _ResNet((depth - 2) // 6, classes)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without weights."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.zeros = stride, (out - into) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.zeros:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return relu(out + x)


class _ResNet(nn.Module):
    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(blocks, WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = _stage(blocks, WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _stage(blocks, WIDTHS[1], WIDTHS[2], 2)
        self.linear = nn.Linear(WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(blocks: int, into: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(into, out, stride), *(_Block(out, out, 1) for _ in range(blocks - 1)))


def small_convnet(width: int, *, classes: int = 10, channels: int = 1) -> nn.Sequential:
    """Three 3x3 convolutions with BatchNorm, the first two of stride 2, global average, linear: the digits pair."""

    def block(into: int, out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(
        *block(channels, width, 2),
        *block(width, 2 * width, 2),
        *block(2 * width, 4 * width, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )
