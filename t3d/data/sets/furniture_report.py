"""What a build of `furniture` could not use: objects left out, names that lead nowhere, faces that cannot be drawn."""

from t3d.data.sets import furniture_views

FILE = 'problems.json'  # beside the data
SHOWN = 20  # lines of each kind that are printed; the file has all


def problems(tasks: list[furniture_views.Task], examples: list[dict], wrong: dict[str, str]) -> dict[str, dict]:
    """{'left out': {object: reason}, 'not found': {object: [name, ...]}, 'faces dropped': {object: count}}.

    Args:
      tasks: of all objects, after rendering.
      examples: of `furniture.describe`.
      wrong: {catalogue entry: reason} of those without a task.
    """
    left_out = dict(wrong)
    for task in tasks:
        if not task.target.exists():
            left_out[_name(task)] = furniture_views.skipped_file(task).read_text(encoding='utf-8')
    originals = [example for example in examples if example['variant'] == 0]
    return {
        'left out': left_out,
        'not found': {_name(example['task']): example['missing'] for example in originals if example['missing']},
        'faces dropped': {_name(example['task']): example['dropped'] for example in originals if example['dropped']},
    }


def text(problems: dict[str, dict], label: str) -> str:
    """Lines for people, '' where all went well."""
    missing = problems['not found']
    names = sum(map(len, missing.values()))
    dropped = problems['faces dropped']
    return (
        _block(problems['left out'], f'{label}: {len(problems["left out"])} objects are left out:', str)
        + _block(
            missing,
            f'{label}: {names} files or materials that {len(missing)} objects name are not found, and what is known is drawn:',
            ', '.join,
        )
        + _block(dropped, f'{label}: {sum(dropped.values())} faces of {len(dropped)} objects are left out (bad corners):', str)
    )


def _block(rows: dict, head: str, say) -> str:
    if not rows:
        return ''
    lines = [head, *(f'  {name}: {say(value)}' for name, value in list(rows.items())[:SHOWN])]
    more = len(rows) - SHOWN
    lines += [f'  and {more} more: see {FILE} beside the data'] if more > 0 else []
    return '\n'.join(lines) + '\n'


def _name(task: furniture_views.Task) -> str:
    return f'{task.entry.object_id} ({task.entry.model})'
