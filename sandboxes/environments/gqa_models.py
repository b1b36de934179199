"""A picture seen by vision models: the tools of `gqa_program` through an object detector and a question answerer.

    models = open_models(detector="google/owlv2-base-patch16-ensemble", answerer="dandelin/vilt-b32-finetuned-vqa")
    outcome = run_program(source, models.look(open_picture("images/n161313.jpg")))

**Detector**: of the OWL-ViT family (zero-shot, by text); `find` is its boxes above `threshold`. **Answerer**: ViLT, which
chooses among its own answers, or BLIP, which writes them. Attributes, relations and kinds become short questions about
a part of the picture ("Is the car red?", about the car's box with a margin); left, right, above, below and positions
are read off the boxes. A name or a folder each, or a ready (processor, model) pair.

Not yet run on trained weights here: tests use tiny random models of the same classes. Needs the extra `vision`. Left
out: batching, depth, segmentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kintsugi.errors import ConfigError, DataError, PolicyError, missing_extra, nearest
from kintsugi.sandboxes.environments.gqa_program import ANYTHING, SCENE, Stopped, Thing
from kintsugi.sandboxes.environments.noun_words import kinds, singular

OPTIONS: Final = ("detector", "answerer", "device", "threshold")
DETECTORS: Final = ("owlvit", "owlv2")
MAX_QUESTIONS: Final = 120
"""Questions to the models that one program may cost."""
MAX_THINGS: Final = 8
_MARGIN: Final = 0.15
_ACROSS: Final = {"to the left of": -1, "left of": -1, "to the right of": 1, "right of": 1}
_DOWN: Final = {"above": -1, "below": 1}
_PLACES: Final = ("left", "right", "top", "bottom", "middle")
_SCENE_QUESTIONS: Final = {"weather": "What is the weather like?", "room": "What room is this?"}
_QUESTIONS: Final = {
    "activity": "What is the {name} doing?",
    "sportactivity": "What sport is the {name} doing?",
    "pose": "What is the {name} doing?",
    "material": "What is the {name} made of?",
    "age": "How old is the {name}?",
    "size": "How large is the {name}?",
}

Box = tuple[float, float, float, float]


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for options that `open_models` does not know, MissingExtra without the packages."""
    from importlib.util import find_spec

    for name in options:
        if name not in OPTIONS:
            raise ConfigError(f'gqa.models: unknown "{name}": {nearest(name, OPTIONS)}')
    if any(find_spec(package) is None for package in ("torch", "transformers", "PIL")):
        raise missing_extra("seeing pictures with models", "vision")


def open_models(
    detector: Any = "google/owlv2-base-patch16-ensemble",
    answerer: Any = "dandelin/vilt-b32-finetuned-vqa",
    device: str = "auto",
    threshold: float = 0.2,
) -> Models:
    """Load both models. device: "auto" takes CUDA where there is one. threshold: least score of a box, in [0, 1].

    Raises ConfigError, and PolicyError for models that cannot be loaded or are of other classes."""
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ConfigError(f"gqa.models.threshold: expected a number from 0 to 1, found {threshold!r}")
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    seeing = _loaded(detector, "AutoModelForZeroShotObjectDetection", device)
    answering = _loaded(answerer, "AutoModelForVisualQuestionAnswering", device)
    if (kind := seeing[1].config.model_type) not in DETECTORS:
        raise PolicyError(f"gqa.models.detector: expected one of {', '.join(DETECTORS)}, found a model of type {kind}")
    return Models(detector=seeing, answerer=answering, device=device, threshold=float(threshold))


def _loaded(source: Any, model_class: str, device: str) -> tuple[Any, Any]:
    import transformers

    if not isinstance(source, str | Path):
        processor, model = source
        return processor, model.to(device).eval()
    try:
        processor = transformers.AutoProcessor.from_pretrained(source)
        model = getattr(transformers, model_class).from_pretrained(source)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise PolicyError(f"gqa.models: {source} cannot be loaded as {model_class} ({reason})") from error
    return processor, model.to(device).eval()


def open_picture(path: str | Path) -> Any:
    """The picture as RGB. Raises DataError when there is none at `path`."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        raise DataError(f"expected a picture at {path}, found none that can be read ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Models:
    """detector, answerer: (processor, model). One caller at a time."""

    detector: tuple[Any, Any]
    answerer: tuple[Any, Any]
    device: str
    threshold: float

    def look(self, picture: Any) -> ModelSight:
        return ModelSight(self, picture)

    def boxes(self, picture: Any, name: str) -> list[Box]:
        """(x, y, width, height) in pixels of everything of that name, the likeliest first."""
        import torch

        processor, model = self.detector
        text = f"a photo of {'an' if name[:1] in 'aeiou' else 'a'} {name}"
        inputs = processor(text=[[text]], images=picture, return_tensors="pt", truncation=True).to(self.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        size = [(picture.height, picture.width)]
        (found,) = processor.post_process_grounded_object_detection(outputs, threshold=self.threshold, target_sizes=size)
        best = found["scores"].argsort(descending=True)[:MAX_THINGS]
        corners = found["boxes"][best].float().cpu().tolist()
        return [_clipped((left, top, right, bottom), picture) for left, top, right, bottom in corners]

    def answer(self, picture: Any, question: str) -> str:
        """A short answer in small letters."""
        import torch

        processor, model = self.answerer
        inputs = processor(images=picture, text=question, return_tensors="pt", truncation=True).to(self.device)
        with torch.inference_mode():
            if model.config.model_type == "vilt":
                best = int(model(**inputs).logits[0].argmax())
                return str(model.config.id2label[best]).strip().lower()
            ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        return processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip().lower()


class ModelSight:
    """A `Sight` of one picture. The same question about the same part is asked once."""

    def __init__(self, models: Models, picture: Any) -> None:
        self.models, self.picture = models, picture
        self._found: dict[str, list[Thing]] = {}
        self._said: dict[tuple[Box | None, str], str] = {}

    def find(self, name: str) -> list[Thing]:
        name = singular(name)
        if name == "scene":
            return [SCENE]
        if name == ANYTHING:
            return [Thing("whole", self._ask(None, "What is in the picture?"), self._whole)]
        if name not in self._found:
            self._count()
            boxes = self.models.boxes(self.picture, name)
            self._found[name] = [Thing(f"{name} {place}", name, box) for place, box in enumerate(boxes)]
        return list(self._found[name])

    def related(self, name: str, relation: str, things: Sequence[Thing], *, forward: bool) -> list[Thing]:
        relation = relation.strip().lower()
        if singular(name) == ANYTHING and things:
            thing = things[0]
            question = f"What is {relation} the {thing.name}?" if forward else f"What is the {thing.name} {relation}?"
            return [Thing(f"anything {relation} {thing.key}", self._ask(thing, question), thing.box)]
        found = [thing for thing in self.find(name) if thing.key not in {one.key for one in things}]
        pairs = ((thing, [(thing, other) if forward else (other, thing) for other in things]) for thing in found)
        return [thing for thing, sides in pairs if any(self._stands(one, relation, other) for one, other in sides)]

    def holds(self, thing: Thing, attribute: str) -> bool:
        attribute = attribute.strip().lower()
        if attribute in _PLACES and thing.box is not None:
            return attribute in self._places(thing.box)
        question = f"Is it {attribute}?" if thing.key == SCENE.key else f"Is the {thing.name} {attribute}?"
        return self._ask(thing, question) == "yes"

    def value(self, thing: Thing, kind: str) -> str:
        if thing.key == SCENE.key:
            return self._ask(None, _SCENE_QUESTIONS.get(kind, f"What {kind} is this?"))
        if kind == "name":
            return thing.name if singular(thing.name) not in kinds() else self._ask(thing, f"What {thing.name} is this?")
        if kind in ("hposition", "vposition") and thing.box is not None:
            wanted = ("left", "right") if kind == "hposition" else ("top", "bottom")
            return next(place for place in self._places(thing.box) if place in wanted)
        return self._ask(thing, _QUESTIONS.get(kind, f"What {kind} is the {{name}}?").format(name=thing.name))

    def pick(self, things: Sequence[Thing], options: Sequence[str]) -> str:
        thing = things[0]
        if thing.box is not None and set(options) <= set(_PLACES):
            return next((option for option in options if option in self._places(thing.box)), "")
        what = "it" if thing.key == SCENE.key else f"the {thing.name}"
        said = self._ask(thing, f"Is {what} {' or '.join(options)}?")
        if said in options:
            return said
        return next((option for option in options if self.holds(thing, option)), "")

    def ask(self, question: str) -> str | None:
        return self._ask(None, question)

    @property
    def _whole(self) -> Box:
        return 0.0, 0.0, float(self.picture.width), float(self.picture.height)

    def _stands(self, one: Thing, relation: str, other: Thing) -> bool:
        if one.box is not None and other.box is not None:
            if relation in _ACROSS:
                return _ACROSS[relation] * (_middle(one.box)[0] - _middle(other.box)[0]) > 0
            if relation in _DOWN:
                return _DOWN[relation] * (_middle(one.box)[1] - _middle(other.box)[1]) > 0
        both = Thing("both", "", _around(one.box or self._whole, other.box or self._whole))
        return self._ask(both, f"Is the {one.name} {relation} the {other.name}?") == "yes"

    def _places(self, box: Box) -> list[str]:
        across, down = _middle(box)[0] / self.picture.width, _middle(box)[1] / self.picture.height
        places = ["left" if across < 0.5 else "right", "top" if down < 0.5 else "bottom"]
        return [*places, *(["middle"] if 1 / 3 <= across <= 2 / 3 or 1 / 3 <= down <= 2 / 3 else [])]

    def _ask(self, thing: Thing | None, question: str) -> str:
        box = thing.box if thing is not None else None
        key = box, question
        if key not in self._said:
            self._count()
            part = self.picture if box is None else self.picture.crop(_widened(box, self.picture))
            self._said[key] = self.models.answer(part, question)
        return self._said[key]

    def _count(self) -> None:
        if len(self._said) + len(self._found) >= MAX_QUESTIONS:
            raise Stopped(f"The program asks the vision models more than {MAX_QUESTIONS} questions")


def _clipped(corners: tuple[float, float, float, float], picture: Any) -> Box:
    left, right = (min(max(side, 0.0), float(picture.width)) for side in (corners[0], corners[2]))
    top, bottom = (min(max(side, 0.0), float(picture.height)) for side in (corners[1], corners[3]))
    return left, top, max(right - left, 1.0), max(bottom - top, 1.0)


def _middle(box: Box) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _around(one: Box, other: Box) -> Box:
    """The least box that holds both."""
    left, top = min(one[0], other[0]), min(one[1], other[1])
    right, bottom = max(one[0] + one[2], other[0] + other[2]), max(one[1] + one[3], other[1] + other[3])
    return left, top, right - left, bottom - top


def _widened(box: Box, picture: Any) -> tuple[int, int, int, int]:
    """The corners with a margin, within the picture; at least 8 pixels each way, where the picture has them."""
    across, down = max(box[2] * _MARGIN, 4), max(box[3] * _MARGIN, 4)
    left, top = max(0, int(box[0] - across)), max(0, int(box[1] - down))
    right, bottom = min(picture.width, int(box[0] + box[2] + across)), min(picture.height, int(box[1] + box[3] + down))
    return min(left, picture.width - 1), min(top, picture.height - 1), max(right, left + 1), max(bottom, top + 1)
