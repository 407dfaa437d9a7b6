"""A teacher for the comparison of distillation methods, trained on the images that its students will see.

    python benchmarks/distill_teacher.py --out nbs/results/cifar100_distill
    featreg compare cifar100 --teacher models/cifar100_teacher.pth --arch resnet8 \\
        --methods KnowledgeDistillation,AttentionTransfer,CCM \\
        --n-train 3000 --n-valid 2000 --size 24 --bs 32 --epochs 8 --lr 0.01 --out nbs/results/cifar100_distill

Trains ResNet-8 with twice the channels on CIFAR-100, for twice as many epochs as its students; saves the network in
`models`, which git ignores, and writes its accuracy to `teacher.csv`. `compare` draws its images by the same function
with the same seed, so that the teacher has seen no image that its students have not.
"""
import argparse,time
from pathlib import Path
import pandas as pd, torch
from fastai.vision.all import Learner, CrossEntropyLossFlat, accuracy, set_seed
from fastai_featreg.data import cifar_dls
from fastai_featreg.nets import cifar_resnet


def train(args: argparse.Namespace) -> Learner:
    "One cycle from scratch"
    set_seed(args.seed, reproducible=True)
    dls = cifar_dls('cifar100', n_train=args.n_train, n_valid=args.n_valid, size=args.size, bs=32)
    learn = Learner(dls, cifar_resnet(args.depth, dls.c, widen=args.widen), loss_func=CrossEntropyLossFlat(),
                    metrics=accuracy)
    learn.fit_one_cycle(args.epochs, args.lr)
    return learn


def parse() -> argparse.Namespace:
    "Command line"
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name,default in (('depth', 8), ('widen', 2), ('n-train', 3000), ('n-valid', 2000), ('epochs', 16),
                         ('size', 24), ('seed', 0)):
        p.add_argument(f'--{name}', type=int, default=default)
    p.add_argument('--lr', type=float, default=1e-2)
    p.add_argument('--model', type=Path, default=Path('models/cifar100_teacher.pth'), help='file of the network')
    p.add_argument('--out', type=Path, required=True, help='folder for teacher.csv')
    return p.parse_args()


def main():
    "Train, measure, save"
    args,start = parse(),time.perf_counter()
    learn = train(args)
    seconds = time.perf_counter() - start
    (loss,acc),(seen_loss,seen_acc) = (learn.validate(),
                                       learn.validate(dl=learn.dls.test_dl(learn.dls.train.items, with_labels=True)))
    row = dict(net=f'ResNet-{args.depth}, {args.widen} times the channels',
               parameters=sum(p.numel() for p in learn.model.parameters()), accuracy=acc, valid_loss=loss,
               train_accuracy=seen_acc, train_eval_loss=seen_loss, seconds=seconds,
               **{k: getattr(args, k) for k in ('n_train', 'n_valid', 'size', 'epochs', 'lr', 'seed')},
               torch=torch.__version__)
    for folder in (args.out, args.model.parent): folder.mkdir(parents=True, exist_ok=True)
    torch.save(learn.model.eval(), args.model)
    pd.DataFrame([row]).to_csv(args.out/'teacher.csv', index=False)
    print(pd.Series(row).to_string())


if __name__ == '__main__': main()
