"""What to type here for the flags of other programs: ultralytics, detectron2, mmdetection, torchvision's references.

`--lr 0.01` is answered with `--learning-rate 0.01`, not with the flag that has the nearest letters.
"""

import re
import sys
from collections.abc import Sequence

from cyclopts import UnknownOptionError

# Commands, the names that other programs have for a flag, and what to say; VALUE stands for what was typed after it.
# An answer that is no flag is a sentence.
_TRAINING = "train study"
_RUNNING = "eval predict study"
_NETWORK = "train eval predict study"
_SIZES = "train eval predict study check anchors"
ANSWERS: tuple[tuple[str, str, str], ...] = (
    (_SIZES, "imgsz img img-size image-size input-size resolution res width", "--size VALUE"),
    (_SIZES, "min-size short-edge", "--short-side VALUE"),
    (_SIZES, "max-size long-edge", "--max-side VALUE"),
    (_NETWORK, "b bs batch batchsize ims-per-batch images-per-batch samples-per-gpu", "--batch-size VALUE"),
    (_NETWORK, "j nw num-workers data-workers workers-per-gpu", "--workers VALUE"),
    (_NETWORK, "gpu gpu-id cuda", "--device cuda:VALUE"),
    (_NETWORK, "cpu no-cuda", "--device cpu"),
    (_NETWORK, "half fp16", "--precision fp16"),
    (_NETWORK, "bf16", "--precision bf16"),
    (_NETWORK, "fp32 no-amp", "--precision fp32"),
    (_NETWORK, "amp mixed-precision", "--precision bf16 (the default where the hardware has it) or --precision fp16"),
    (_NETWORK, "output output-dir outdir work-dir save-dir save-path", "--out VALUE"),
    (_NETWORK, "name exp-name experiment", "--out runs/VALUE"),
    (_NETWORK, "project", "--out VALUE/NAME"),
    (_TRAINING, "exist-ok force", "--overwrite"),
    ("train eval study check anchors", "dataset data-path data-dir root", "--data VALUE"),
    (_SIZES, "num-classes nc classes", "the classes are those of the data; nothing needs to be typed"),
    (
        _TRAINING,
        "lr lr0 base-lr rate",
        "--learning-rate VALUE, the rate for 8 images per update (--batch-size scales it)",
    ),
    (_TRAINING, "lrf min-lr", "one_cycle and cosine end near 0 by themselves: --schedule one_cycle"),
    (_TRAINING, "cos-lr cosine", "--schedule cosine"),
    (_TRAINING, "lr-scheduler scheduler lr-schedule", "--schedule VALUE (one_cycle, cosine, step or constant)"),
    (_TRAINING, "lr-steps lr-step-size milestones", "--schedule step --step-at 0.67 0.89, in fractions of the run"),
    (_TRAINING, "opt optim", "--optimizer VALUE"),
    (_TRAINING, "wd decay", "--weight-decay VALUE"),
    (_TRAINING, "warmup warmup-iters warmup-steps", "--warmup-epochs 1, in epochs"),
    (_TRAINING, "grad-clip clip-grad clip clip-grad-norm max-grad-norm", "--clip-norm VALUE"),
    (_TRAINING, "ema-decay model-ema-decay", "--ema VALUE"),
    (_TRAINING, "no-ema", "--ema none"),
    (_TRAINING, "epoch max-epoch max-epochs num-epochs e", "--epochs VALUE"),
    (_TRAINING, "iters iterations max-iter max-iters steps max-steps", "--epochs: a run is as long as its passes"),
    (_TRAINING, "grad-accum gradient-accumulation-steps accumulate-grad-batches", "--accumulate VALUE"),
    (_TRAINING, "freeze freeze-at freeze-backbone", "--frozen-stages VALUE, stages of the backbone, stem included"),
    (_TRAINING, "trainable-backbone-layers", "--frozen-stages: 5 less the layers that are trained"),
    (
        _TRAINING,
        "pretrained ckpt checkpoint load-from init-weights weights-backbone",
        "--weights torchvision:imagenet_v1",
    ),
    (_TRAINING, "cfg config-file cfg-file yaml hyp", "--config VALUE"),
    (_TRAINING, "resume-from auto-resume continue", "--out VALUE --resume"),
    (_TRAINING, "arch architecture-name", "--model VALUE; focaldet models lists them"),
    (_TRAINING, "backbone", "--architecture.backbone VALUE"),
    (_TRAINING, "anchors", "--architecture.anchors VALUE; focaldet anchors computes them"),
    (_TRAINING, "num-gpus gpus nproc world-size devices", "torchrun --nproc-per-node VALUE -m focaldet train …"),
    (_TRAINING, "nosave no-save", "a run is always saved, in the folder of --out"),
    (_TRAINING, "save-period save-interval checkpoint-period", "--save-minutes 10 or --save-steps VALUE"),
    (_TRAINING, "eval-period val-interval eval-interval val-period", "--evaluate-every VALUE, in epochs"),
    (_TRAINING, "noval no-val no-validate", "--evaluate-every none"),
    (_TRAINING, "early-stopping", "--patience VALUE"),
    (_TRAINING, "test-only eval-only", "focaldet eval RUN"),
    (_TRAINING, "print-freq log-interval log-period", "--log-every VALUE"),
    (_TRAINING, "wandb tensorboard mlflow", "--loggers FLAG"),
    (_TRAINING, "fliplr hflip hflip-prob", "--augment.flip-horizontal VALUE"),
    (_TRAINING, "flipud vflip", "--augment.flip-vertical VALUE"),
    (_TRAINING, "hsv-h", "--augment.hue VALUE"),
    (_TRAINING, "hsv-s", "--augment.saturation VALUE"),
    (_TRAINING, "hsv-v", "--augment.value VALUE"),
    (_TRAINING, "mosaic", "--augment.mosaic VALUE"),
    (_TRAINING, "scale", "--augment.scale-jitter 0.5 1.5"),
    (_TRAINING, "data-augmentation aug", "--augment.preset light (or none, strong, ssd, yolo)"),
    (_TRAINING, "multiscale", "--multi-scale 320 640"),
    (_TRAINING, "random-seed", "--seed VALUE"),
    ("predict", "conf conf-thres conf-threshold confidence confidence-threshold score-thr threshold", "--score VALUE"),
    (
        "eval study",
        "conf conf-thres conf-threshold confidence confidence-threshold score-thr threshold",
        "--architecture.detect.score-threshold VALUE",
    ),
    (_NETWORK, "iou iou-thres iou-threshold nms nms-thres nms-iou", "--architecture.detect.nms-iou VALUE"),
    (_NETWORK, "max-det max-dets max-detections", "--architecture.detect.max-detections VALUE"),
    ("eval study", "weights", "the run or weights file comes first, without a flag: VALUE"),
    (_RUNNING, "model ckpt checkpoint", "the run or weights file comes first, without a flag: VALUE"),
    (_RUNNING, "augment tta", "--architecture.plus.scales [0.5,1] of a Faster R-CNN"),
    ("predict", "source input images image", "the images follow the run, without a flag: VALUE"),
    ("predict", "save-txt", "--formats yolo"),
    ("predict", "save-json", "--formats coco"),
    ("predict", "save-csv", "--formats csv"),
    ("predict", "nosave no-save", "--no-drawn"),
    ("eval", "task", "--split VALUE"),
    ("eval", "save-json", "predictions.json is always written, in the folder of --out"),
    ("convert", "output output-dir", "--out VALUE"),
)

OLD_FLAGS = {"--licence": "--license", "--picture-px": "--image-px"}


def explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """What to type instead of the flag that `error` refused, or of a word such as `epochs=3`.

    None where no other program has such a flag.
    """
    if isinstance(error, UnknownOptionError):
        flag = (error.token.keyword or error.token.value).partition("=")[0]
        answer = _answer(arguments[0], flag, _typed_value(flag, arguments))
        return answer and f"{flag}: {_answer_text(answer)}"
    assignments = [argument for argument in arguments[1:] if re.match(r"[a-z][a-z0-9_.]*=", argument)]
    if any(assignment in str(error) for assignment in assignments):
        name, _, value = assignments[0].partition("=")
        return (
            f"{assignments[0]}: {_answer_text(_answer(arguments[0], name, value) or f'--{_flag_words(name)} {value}')}"
        )
    return None


def rename_old(arguments: Sequence[str]) -> list[str]:
    """The arguments with the flags of version 0.1 under their present names, each with a line on stderr."""
    words = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        new = OLD_FLAGS.get(flag, flag)
        if new != flag:
            print(f"focaldet: {flag} is now called {new}", file=sys.stderr)
        words.append(new + equals + value)
    return words


def _answer_text(answer: str) -> str:
    return f"say {answer}" if answer.startswith(("--", "focaldet ", "torchrun ")) else answer


def _answer(command: str, flag: str, value: str) -> str | None:
    name = _flag_words(flag)
    for commands, names, answer in ANSWERS:
        if command in commands.split() and name in names.split():
            return answer.replace("VALUE", value).replace("FLAG", name)
    return None


def _flag_words(flag: str) -> str:
    return flag.lstrip("-").lower().replace("_", "-")


def _typed_value(flag: str, arguments: Sequence[str]) -> str:
    """What was typed after `flag`; the word VALUE where that is nothing."""
    for number, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == flag:
            following = value if equals else next(iter(arguments[number + 1 :]), "")
            return following if following and not following.startswith("--") else "VALUE"
    return "VALUE"
