"""`t3d weights`: a run as a folder to share; `t3d weights check DIR`: what real weights hold."""

from t3d.core import parsing


def settings(command) -> None:
    """`--config` of commands that take a single-file checkpoint."""
    text = 'beside a single .safetensors: the folder with settings, tokenizer and schedule (default: where the file lies)'
    command.add_argument('--config', metavar='DIR', help=text)


def flags(command) -> None:
    command.add_argument('run', help='run folder, or the word check')
    command.add_argument('out', help='folder to write; after check, the folder or .safetensors to read')
    settings(command)
    command.add_argument('--dtype', default='float32', choices=('float32', 'float16', 'bfloat16'))


def run(args) -> int | None:
    if args.run == 'check':
        from t3d.inference import weights_check

        return weights_check.run(args.out, config=args.config)
    from t3d.inference import loading

    parsing.run_folder(args.out, 'OUT')
    loading.save_weights(loading.load(args.run), args.out, args.dtype)
    print(f'wrote {args.out}/model.safetensors and {args.out}/config.json')
