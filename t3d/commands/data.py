"""`t3d data build`, `t3d data single-view`, `t3d data check`, `t3d data pack`: data sets."""

from t3d.core import parsing, shares
from t3d.core.rules import Real, Whole

COUNT = 2**31 - 1
BUILD = {
    'size': Whole(8, 1024, 'pixels of the square views'),
    'variants': Whole(0, 7, 'recoloured variants of each object'),
    'limit': Whole(1, COUNT, 'objects'),
    'processes': Whole(1, 256, 'that render at once'),
}
SINGLE_VIEW = {
    'size': Whole(4, 8192, 'pixels of the square images'),
    'poses': Whole(1, 2**20, 'pictures of each scene'),
    'supersample': Whole(1, 31, 'rays for each side of a pixel, odd'),
    'variants': Whole(0, 7, 'recoloured variants that the build has'),
    'background': Real(0.0, 1.0, 'a grey from 0, black, to 1, white'),
    'seed': Whole(0, 2**32 - 1, 'of the poses'),
    'limit': Whole(2, COUNT, 'pictures'),
}
PACK = {
    'size': Whole(4, 8192, 'pixels of the square views'),
    'views': Whole(0, 4096, 'of a record; 0: as many as the first object has'),
    'shard_size': Whole(1, COUNT, 'objects of a file'),
    'processes': Whole(1, 256, 'that pack at once'),
}
CHECK = {'objects': Whole(1, COUNT, 'whose pictures are looked at')}


def flags(command) -> None:
    actions = command.add_subparsers(dest='action', required=True, metavar='ACTION')
    text = 'render the furniture library: `t3d data build furniture --source PATH --size 64`'
    build = actions.add_parser('build', help=text, description=text)
    build.add_argument('name', choices=('furniture',))
    build.add_argument('--source', required=True, help='the .deb, a .sh3f library, or a folder of them')
    build.add_argument('--size', type=int, default=64, help='pixels of the square views')
    build.add_argument('--out', help='where built data sets live (default: $T3D_DATA or ~/.cache/t3d/data)')
    build.add_argument('--variants', type=int, default=0, help='recoloured variants of each object, up to 7')
    build.add_argument('--limit', type=int, help='only this many objects')
    build.add_argument('--processes', type=int, default=2, help='that render at once')
    build.add_argument('--license', default='all', choices=('all', 'cc0'))
    build.add_argument('--share', metavar='I/N', help='render the part of host I of N, from 0; then once without')
    text = 'one posed picture a record as an EG3D folder or zip: `t3d data single-view toy --out toy.zip`'
    write = actions.add_parser('single-view', help=text, description=text)
    names = ('toy', 'furniture', 'eg3d')
    write.add_argument('name', choices=names, help='eg3d: a set that is checked, mirrored or made smaller')
    write.add_argument('--out', required=True, help='a .zip, or a folder that is not there yet')
    write.add_argument('--source', default='', help='of eg3d: its folder or zip; of furniture: the build (default: $T3D_DATA)')
    write.add_argument('--split', default='train', help='train (default), test, ...')
    write.add_argument('--size', type=int, help='pixels of the square images (default: 64; of eg3d as they are)')
    write.add_argument('--poses', type=int, default=64, help='of toy: pictures of each scene')
    write.add_argument('--scenes', default='singles', help='of toy: singles, pairs, both')
    write.add_argument('--supersample', type=int, default=3, help='of toy: rays for each side of a pixel, odd')
    write.add_argument('--variants', type=int, default=0, help='of furniture: recoloured variants the build has')
    write.add_argument('--background', type=float, default=0.5, help='grey from 0 to 1 behind transparent pixels')
    write.add_argument('--seed', type=int, default=0, help='of the poses')
    write.add_argument('--mirror', action='store_true', help='every picture a second time, mirrored, its label too')
    write.add_argument('--limit', type=int, help='only this many pictures, spread over the set')
    text = 'what a folder of posed pictures holds and what is wrong with it: `t3d data check FOLDER`'
    check = actions.add_parser('check', help=text, description=text)
    check.add_argument('folder', help='of posed pictures, in one of the layouts of docs/posed_images.md')
    check.add_argument('--layout', default='auto', help='its name, where looking does not tell (default: auto)')
    check.add_argument('--split', default='all', help='train, val, test or all (default)')
    check.add_argument('--fit', default='auto', help='into [-1, 1]^3: auto (default), cameras, or a factor of positions')
    check.add_argument('--objects', type=int, default=8, help='whose pictures are looked at, spread over the set')
    check.add_argument('--out', default='out/check', help='folder for sheet.png (default: out/check)')
    text = 'posed pictures as files of many objects, which stream: `t3d data pack FOLDER --out records --size 64`'
    pack = actions.add_parser('pack', help=text, description=text)
    pack.add_argument('folder', help='of posed pictures, or of built furniture')
    pack.add_argument('--out', required=True, help='the folder of records; the same command again goes on with it')
    pack.add_argument('--size', type=int, help='pixels of the square views (default: 64; of furniture as built)')
    pack.add_argument('--views', type=int, default=0, help='of a record (default: as many as the first object has)')
    pack.add_argument('--shard-size', type=int, default=2000, help='objects of a file (default: 2000)')
    pack.add_argument('--encoding', default='png', choices=('png', 'raw'), help='raw: larger, and nothing to decode')
    pack.add_argument('--layout', default='auto', help='its name, where looking does not tell (default: auto)')
    pack.add_argument('--fit', default='auto', help='into [-1, 1]^3: auto (default), cameras, or a factor of positions')
    pack.add_argument('--processes', type=int, default=2, help='that pack at once (default: 2)')
    pack.add_argument('--share', metavar='I/N', help='pack the part of host I of N, from 0; then once without')


RANGES = {'build': BUILD, 'single-view': SINGLE_VIEW, 'check': CHECK, 'pack': PACK}


def run(args) -> None:
    parsing.held(args, RANGES[args.action])
    if args.out is not None:
        parsing.writable(args.out, file=args.out.lower().endswith('.zip'))
    share = shares.parse(args.share) if getattr(args, 'share', None) is not None else None
    if args.action == 'single-view':
        from t3d.build import single_view_set

        return print(single_view_set.run(args))
    if args.action == 'check':
        from t3d.build import check_posed

        options = {name: getattr(args, name) for name in ('layout', 'split', 'fit', 'objects', 'out')}
        return print(check_posed.run(args.folder, **options))
    if args.action == 'pack':
        from t3d.build import pack_records

        names = ('shard_size', 'size', 'views', 'encoding', 'layout', 'fit', 'processes')
        pack_records.run(args.folder, args.out, share=share, **{name: getattr(args, name) for name in names})
        return None
    from t3d.data.sets import furniture

    try:
        import embreex.mesh_construction  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            '`t3d data build` renders with Embree (package embreex): pip install "t3d[data]". Its wheels '
            'are for x86-64 Linux, Windows and macOS.'
        ) from error
    path = furniture.build(
        args.source,
        args.out,
        args.size,
        variants=args.variants,
        limit=args.limit,
        license=args.license,
        processes=args.processes,
        share=share,
    )
    if share is None:
        print(f'built {path}')
