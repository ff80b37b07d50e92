"""A config of small single-view data, for the tests of such sets."""

from t3d.core import config as configs

TEXT = {'words': (), 'length': 8, 'open_vocabulary': False, 'folder': ''}


def make_config(text=None, background=0.5, system='ganfusion_gan', **data):
    data = {
        'name': 'toy',
        'kind': 'single_view',
        'split': 'train',
        'scenes': 'singles',
        'size': 12,
        'poses': 2,
        'seed': 3,
        'supersample': 1,
        'path': '',
        'variants': 0,
        'mode': 'posed-known',
        'mirror': False,
        'views': 1,
        **data,
    }
    config = {'system': system, 'batch': 8, 'preview': {'rows': 5}, 'render': {'background': background}, 'data': data}
    return configs.from_dict(config | ({'text': text} if text else {}))
