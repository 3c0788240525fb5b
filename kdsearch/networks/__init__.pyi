from kdsearch.networks.convnets import cifar_resnet as cifar_resnet
from kdsearch.networks.convnets import small_convnet as small_convnet
from kdsearch.networks.ensemble import Ensemble as Ensemble
from kdsearch.networks.outputs import tapped as tapped
from kdsearch.networks.teachers import Teacher as Teacher
from kdsearch.networks.weights import load_weights as load_weights
from kdsearch.networks.weights import torchvision_model as torchvision_model
from kdsearch.networks.wrappers import Normalised as Normalised
