"""Your own pictures, your checkpoint, a torchvision or timm student: fill in three paths.

Get it:  kdsearch copy image_folder
Look:    kdsearch check ./image_folder.py       (the data, the teacher, memory and time; nothing is trained)
Run:     kdsearch search ./image_folder.py
"""

import kdsearch as kd

TRAIN = "path/to/train"  # a folder of pictures for each class
VALIDATION = "path/to/validation"  # the same classes; pictures that the teacher was not trained on
TEACHER = "path/to/teacher.pth"  # its weights; `state_dict`, `model`, `module.` and the like are found
SIDE = 64  # pixels, of both networks
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # what both networks were trained with: ImageNet's

train = kd.data.image_folder(TRAIN, size=SIDE)
classes = train.class_names


def student():  # or, with timm installed, timm.create_model("mobilenetv3_small_100", num_classes=len(classes))
    return kd.networks.Normalised(kd.networks.torchvision_model("resnet18", classes=len(classes)), MEAN, STD)


study = kd.Study(
    name="image_folder",
    train=train,
    search_validation=kd.data.image_folder(VALIDATION, size=SIDE),
    teacher=kd.networks.Normalised(
        kd.networks.torchvision_model("resnet34", classes=len(classes), weights=TEACHER), MEAN, STD
    ),
    student=student,
    classes=classes,
    teacher_saw="train",  # of these pictures: "none", "train" or "both"
    test=None,  # kd.data.image_folder("path/to/test", size=SIDE), for `kdsearch evaluate` and `compare`
    readers=2,  # processes that read pictures
    budget=kd.Budget(trials=8, epochs=10, steps=50, batch=32, confirmation=4),
)
