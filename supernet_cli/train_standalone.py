"""Train one model from scratch, without a supernet, and by a teacher or by peers if you like.

    supernet train-standalone --subnet subnets/mine --run runs/mine --output models/mine
    supernet train-standalone --model resnet18 --recipe cifar10 --root images/ --output models/big
    supernet train-standalone --space ofa_mobilenet_v3 --arch '{"resolution": 128, ...}' --output models/other
    supernet train-standalone --model tinynet_e --input-size 64 --teacher models/big --kl 1 --attention 1000 \
        --recipe cifar10 --root images/ --output models/student
    supernet train-standalone --model resnet18 --peers resnet18 mobilenetv3_small_100 --mutual 1 \
        --recipe cifar10 --root images/ --output models/cohort

The first line asks what the supernet's weights are worth: it trains the architecture of the saved subnet on the same
images with the same settings as the supernet, and prints both accuracies. A student is any timm model or any
architecture, a teacher any timm model, saved subnet or finished training run; one that answers (kl, adaptive_alpha)
tells the same classes apart, by name. The losses are those of distill/, each with its weight. Teacher
assistants and born-again networks are this command again, with the model before as the teacher. The last line is deep
mutual learning: the model and its peers, timm models or the architectures of saved subnets, train side by side from
weights of their own, and each learns from the labels and from what the others answer.

Writes the output folder as `supernet extract` does, and the run in training/ within it, with the peers in
training/peers/. Digits take half a minute on 2 cores.
"""

from __future__ import annotations

from supernet_cli.model_training import FromScratch, from_scratch, parse, train


def main() -> None:
    train(parse(FromScratch, __doc__, from_scratch))
