"""Captions by BLIP (arXiv 2201.12086) with the user's own weights, through transformers and torch (the extra `caption`).

`sentences` lets BLIP describe a picture; `answers` asks BLIP-VQA for attributes and fills them into a template, as the regular
captions of GANFusion's published prompts suggest (ganfusion.md, section 7.2). Weights are a local folder in transformers'
layout with model.safetensors, for example of Salesforce/blip-vqa-base. Nothing is downloaded, no code of the folder runs.
"""

import collections
import difflib
import functools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from t3d.checkpoint import torch_files
from t3d.core import files
from t3d.core.errors import UsageError
from t3d.data.sets import captions

FILES = ('config.json', 'model.safetensors')
TOKENIZERS = ('tokenizer.json', 'vocab.txt')
BATCH = 16
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's; the folder's are read
COLOURS = ('red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown', 'beige', 'gray', 'black', 'white')
WHO = ('man', 'woman', 'person')
YES = ('yes', 'no')


class Template(NamedTuple):
    """Questions whose answers make a caption.

    Attributes:
      questions: slot -> question.
      choices: slot -> words that an answer is brought to; slots without any keep the answer.
      say: (slots, choice) -> caption.
    """

    questions: dict[str, str]
    choices: dict[str, tuple[str, ...]]
    say: Callable[[dict, int], str]


def _people(slots: dict, choice: int) -> str:
    """'a photo of a woman wearing a red sweater, black pant, white sneakers'."""
    photo = ('photo', 'full-body photo')[choice % 2]
    feet = slots['footwear']
    end = 'barefoot' if feet == 'barefoot' else f'{slots["footwear_colour"]} {feet}'
    top, bottom = f'{slots["top_colour"]} {slots["top"]}', f'{slots["bottom_colour"]} {slots["bottom"]}'
    return f'a {photo} of a {slots["who"]} wearing {_a(top)}, {bottom}, {end}'


def _faces(slots: dict, choice: int) -> str:
    """'a photo of a man, with brown short hair, round face, blue eyes, wearing glasses, smiling'."""
    photo = ('photo', 'portrait photo')[choice % 2]
    text = f'a {photo} of a {slots["who"]}, with {slots["hair_colour"]} {slots["hair"]} hair, {slots["face"]} face'
    text += f', {slots["eyes"]} eyes'
    extra = (('glasses', 'wearing glasses'), ('smile', 'smiling'))
    return text + ''.join(f', {words}' for slot, words in extra if slots[slot] == 'yes')


def _objects(slots: dict, choice: int) -> str:
    """'a red chair', 'red chair', ...; the ways of data.sets.captions that say the colour."""
    said = [text for text in captions.captions(slots['noun'], slots['colour']) if slots['colour'] in text]
    return said[choice % len(said)]


def _a(text: str) -> str:
    return ('an ' if text[:1] in 'aeiou' else 'a ') + text


TEMPLATES = {
    'people': Template(
        {
            'who': 'is this a man or a woman?',
            'top': 'what is the person wearing on the upper body?',
            'top_colour': 'what color is the top?',
            'bottom': 'what is the person wearing on the legs?',
            'bottom_colour': 'what color are the pants?',
            'footwear': 'what is the person wearing on the feet?',
            'footwear_colour': 'what color are the shoes?',
        },
        {
            'who': WHO,
            'top': ('sweater', 'jacket', 'blouse', 'polo shirt', 'tank top', 'dress shirt', 'coat', 'vest'),
            'bottom': ('pant', 'jean', 'short'),
            'footwear': ('socks', 'sneakers', 'sandals', 'boots', 'barefoot'),
            **dict.fromkeys(('top_colour', 'bottom_colour', 'footwear_colour'), COLOURS),
        },
        _people,
    ),
    'faces': Template(
        {
            'who': 'is this a man or a woman?',
            'hair_colour': "what color is the person's hair?",
            'hair': "is the person's hair short or long?",
            'face': "what shape is the person's face?",
            'eyes': "what color are the person's eyes?",
            'glasses': 'is the person wearing glasses?',
            'smile': 'is the person smiling?',
        },
        {'who': WHO, 'hair': ('short', 'long'), 'glasses': YES, 'smile': YES},
        _faces,
    ),
    'objects': Template({'noun': 'what is this object?', 'colour': 'what color is the object?'}, {'colour': COLOURS}, _objects),
}


# ----------------------------------------------------------------------------------------------------------- captioners


def sentences(weights) -> tuple[str, Callable, Callable]:
    """(name, caption, render) of BLIP's captioning model in a folder: the slot `caption`, of the first view."""
    blip = Blip(weights, 'BlipForConditionalGeneration')

    def caption(images: np.ndarray, labels: np.ndarray) -> list[dict]:
        return [{'caption': text} for text in blip.say(np.asarray(images)[:, 0])]

    return f'blip {blip.digest}', caption, lambda slots, choice=0: slots['caption']


def answers(weights, template: str = 'objects') -> tuple[str, Callable, Callable]:
    """(name, caption, render) of BLIP-VQA in a folder: the slots of a template, by the majority of the views."""
    if template not in TEMPLATES:
        raise UsageError(f'unknown template {template!r}: choose one of {", ".join(TEMPLATES)}.')
    chosen, blip = TEMPLATES[template], Blip(weights, 'BlipForQuestionAnswering')

    def caption(images: np.ndarray, labels: np.ndarray) -> list[dict]:
        images = np.asarray(images)
        count, views = images.shape[:2]
        slots = [{} for _ in range(count)]
        for slot, question in chosen.questions.items():
            said = blip.say(images.reshape(-1, *images.shape[2:]), question)
            for k in range(count):
                slots[k][slot] = vote(said[k * views : (k + 1) * views], chosen.choices.get(slot, ()))
        return slots

    return f'blip-vqa {blip.digest}, {template}', caption, lambda slots, choice=0: chosen.say(slots, choice)


def vote(said: list[str], choices: tuple[str, ...]) -> str:
    """The most frequent answer, each brought to the nearest of `choices` first; of equally frequent ones the earliest."""
    return collections.Counter(nearest(answer, choices) for answer in said).most_common(1)[0][0]


def nearest(answer: str, choices: tuple[str, ...]) -> str:
    """The choice that an answer names ('a red sweater': 'sweater'), else the most alike, else the answer as it is."""
    answer = ' '.join(answer.lower().split())
    if not choices or answer in choices:
        return answer
    words = answer.split()
    for choice in choices:
        if choice in words or f'{choice}s' in words or (' ' in choice and choice in answer):
            return choice
    return (difflib.get_close_matches(answer, choices, 1, 0.6) or [answer])[0]


# ---------------------------------------------------------------------------------------------------------------- BLIP


class Blip:
    """A BLIP model of a local folder.

    Args:
      weights: the folder.
      kind: transformers' class, which config.json has to name.
    """

    def __init__(self, weights, kind: str):
        self.folder = check(weights, kind)
        torch, transformers = _libraries()
        options = {'local_files_only': True}
        self._torch = torch
        self._tokenizer = transformers.BertTokenizer.from_pretrained(str(self.folder), **options)
        self._model = getattr(transformers, kind).from_pretrained(str(self.folder), use_safetensors=True, **options).eval()
        self._pixels = functools.partial(pixels, **_preprocessing(self.folder))
        self.digest = torch_files.digest(self.folder / 'model.safetensors')[:8]

    def say(self, images: np.ndarray, question: str | None = None) -> list[str]:
        """A text for each of images [N, H, W, 3] in [0, 1]: the answer to a question, or a description; the likeliest words."""
        texts = []
        for start in range(0, len(images), BATCH):
            some = self._torch.from_numpy(self._pixels(images[start : start + BATCH]))
            asked = {} if question is None else dict(self._tokenizer([question] * len(some), return_tensors='pt'))
            asked.pop('token_type_ids', None)
            with self._torch.no_grad():
                ids = self._model.generate(pixel_values=some, max_new_tokens=24, do_sample=False, num_beams=1, **asked)
            begin = self._model.config.text_config.bos_token_id  # BLIP's own mark, which its tokenizer may not call special
            rows = [[token for token in row if token != begin] for row in ids.tolist()]
            texts += [text.strip() for text in self._tokenizer.batch_decode(rows, skip_special_tokens=True)]
        return texts


def pixels(images: np.ndarray, size: tuple[int, int], mean, std) -> np.ndarray:
    """float32 [N, 3, h, w] as BLIP's own preprocessing makes them: 8 bits, bicubic resize, normalised."""
    from PIL import Image

    eight = np.round(255.0 * np.clip(images, 0.0, 1.0)).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)) for image in eight]
    normal = (np.stack(resized).astype(np.float32) / 255.0 - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))


def _preprocessing(folder: pathlib.Path) -> dict:
    """size (height, width), mean and std of a folder; BLIP's where it says nothing."""
    name = 'preprocessor_config.json'
    stored = torch_files.read_config(folder, name) if (folder / name).is_file() else {}
    size = stored.get('size', torch_files.read_config(folder).get('vision_config', {}).get('image_size', 384))
    size = (size['height'], size['width']) if isinstance(size, dict) else (size, size)
    return {'size': size, 'mean': stored.get('image_mean', MEAN), 'std': stored.get('image_std', STD)}


def check(weights, kind: str) -> pathlib.Path:
    """The folder, if it holds a model of this kind; UsageError with what is missing and what to give."""
    example = {'BlipForQuestionAnswering': 'Salesforce/blip-vqa-base'}.get(kind, 'Salesforce/blip-image-captioning-base')
    needed = (
        f'--captioner-weights DIR, a local folder of {kind} (for example {example}) with config.json, model.safetensors and '
        'tokenizer.json or vocab.txt'
    )
    if not weights:
        raise UsageError(f'this captioner needs weights, which t3d cannot ship: give {needed}.')
    folder = files.local(weights)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        missing.append(' or '.join(TOKENIZERS))
    if missing:
        raise UsageError(f'{folder} lacks {", ".join(missing)}: give {needed}.')
    config = torch_files.read_config(folder)
    if config.get('model_type') != 'blip' or config.get('architectures', [kind]) != [kind]:
        what = ', '.join(config.get('architectures') or [str(config.get('model_type'))])
        raise UsageError(f'{folder} is of {what}: give {needed}.')
    return folder


def _libraries():
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise UsageError(f"BLIP runs through {error.name}, which is not installed: pip install 't3d[caption]'.") from error
    return torch, transformers
