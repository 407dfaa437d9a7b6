"""The site: `pip install -e '.[docs]'`, then `python tools/docs.py` writes it into `_site/html/`.

Pages are made from the notebooks (`notebook_pages.py`) into `_site/`, Zensical builds the site from them, and then
each link and anchor of what was built is looked up. A broken one, or a notebook that `mkdocs.yml` does not name, fails.
`python tools/docs.py pages` stops before Zensical, `python tools/docs.py links` only looks at what was built."""
import os, re, shutil, subprocess, sys
from fnmatch import fnmatch
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.parse import unquote
import yaml
from notebook_pages import exported, page, read_cells, title, with_links

root = Path(__file__).resolve().parent.parent
work = root/'_site'
site = work/'html'
font = 'STIXTwoMath-Regular.ttf'


def sources() -> list:
    "Every notebook, by its path in the repository"
    return sorted(o.relative_to(root).as_posix() for o in (root/'nbs').rglob('*.ipynb')
                  if '.ipynb_checkpoints' not in o.parts)


def where(source: str) -> str:
    "The page of a file: `nbs/results/cards.ipynb` is at `results/cards.md`"
    path = re.sub(r'^nbs/', '', source)
    # generators leave out names that begin with an underscore
    return re.sub(r'(^|/)_', r'\1', re.sub(r'\.ipynb$', '.md', path))


def entries(nav: list) -> list:
    "The lines of a navigation without its sections"
    lists = [entries(next(iter(o.values()))) if isinstance(o, dict) else [o] for o in nav]
    return [o for part in lists for o in part]


def expanded(
    nav:list, # names of files, patterns, and dictionaries of a section's name and its list
    files:list, # what patterns may take
) -> list: # the same with patterns replaced by what they take, and without sections that are empty
    "A pattern takes the files that no name and no pattern above it takes"
    left = [o for o in files if o not in entries(nav)]
    def fill(nav):
        lines = []
        for o in nav:
            if isinstance(o, dict):
                (name, inside), = o.items()
                inside = fill(inside)
                if inside: lines.append({name: inside})
            elif '*' not in o: lines.append(o)
            else:
                # no star of a pattern stands for a slash
                found = [f for f in left if fnmatch(f, o) and f.count('/') == o.count('/')]
                left[:] = [f for f in left if f not in found]
                lines += found
        return lines
    found = fill(nav)
    if left: raise ValueError(f'mkdocs.yml must name every notebook, got none of {left}; add a line to its `nav`')
    return found


def named(nav: list, titles: dict) -> list:
    "The navigation as the generator wants it; a section of one page is the page"
    lines = []
    for o in nav:
        if isinstance(o, str): lines.append({titles[o]: where(o)})
        else:
            (name, inside), = o.items()
            inside = named(inside, titles)
            lines.append({name: next(iter(inside[0].values())) if len(inside) == 1 else inside})
    return lines


class Site:
    "The files of the site while they are written"
    def __init__(self, config: dict):
        self.nav = expanded(config['nav'], sources())
        self.files = entries(self.nav)
        self.cells = {o: read_cells(root/o) for o in self.files if o.endswith('.ipynb')}
        self.titles = {o: title(self.cells[o] if o in self.cells else [self.prose(o)]) for o in self.files}
        self.homes = self.find_names()

    def prose(self, source: str) -> dict:
        "A Markdown file as a cell"
        return dict(cell_type='markdown', source=(root/source).read_text(encoding='utf-8'))

    def find_names(self) -> dict:
        "Name of each public function or class -> its notebook; not those of two, nor words such as `plain` and `work`"
        pairs = [(name, source) for source, cells in self.cells.items() for name in exported(cells)]
        names = [name for name, _ in pairs]
        return {name: source for name, source in pairs
                if names.count(name) == 1 and ('_' in name or name != name.lower())}

    def place(self, source: str, target: str) -> str:
        "Where a link of `source` leads on the site"
        path = os.path.normpath(os.path.join(os.path.dirname(source), unquote(target)))
        here = os.path.dirname(where(source)) or '.'
        if path in self.files: return os.path.relpath(where(path), here)
        if not path.startswith('nbs/') or not (root/path).is_file():
            raise ValueError(f'a link must lead to a page or a file in nbs/, got {target} in {source}')
        copy = work/'pages'/where(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/path, copy)
        return os.path.relpath(where(path), here)

    def write(self, source: str) -> None:
        "The page of one file, and its pictures"
        path = work/'pages'/where(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        def place(target): return self.place(source, target)
        if source not in self.cells: text = with_links(self.prose(source)['source'], place)
        else:
            places = {name: f'{os.path.relpath(where(home), os.path.dirname(where(source)) or ".")}#{name}'
                      for name, home in self.homes.items() if home != source}
            text = page(self.cells[source], self.saver(path), place, places)
        path.write_text(text, encoding='utf-8')

    def saver(self, path: Path):
        "Keeps pictures in a folder beside the page"
        folder = path.with_suffix('')
        def save(picture: bytes) -> str:
            folder.mkdir(exist_ok=True)
            name = f'{len(list(folder.iterdir())) + 1}.png'
            (folder/name).write_bytes(picture)
            return f'{folder.name}/{name}'
        return save


def write_pages() -> None:
    "Markdown pages, style and configuration into `_site/`"
    shutil.rmtree(work, ignore_errors=True)
    config = yaml.safe_load((root/'mkdocs.yml').read_text(encoding='utf-8'))
    made = Site(config)
    for source in made.files: made.write(source)
    shutil.copy(root/'tools/site.css', work/'pages')
    # a browser draws MathML with a font that has a table for it, and many systems have none
    (work/'pages'/font).write_bytes((resources.files('ziamath.fonts')/font).read_bytes())
    config['nav'] = named(made.nav, made.titles)
    (work/'mkdocs.yml').write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding='utf-8')


class Links(HTMLParser):
    "Links and anchors of one page"
    def __init__(self):
        super().__init__()
        self.links,self.anchors = [],set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get('id'), attrs.get('name')}
        if tag in ('a', 'img', 'script', 'link'): self.links.append(attrs.get('href') or attrs.get('src') or '')


def read_links(path: Path) -> Links:
    "What a built page links to"
    found = Links()
    found.feed(path.read_text(encoding='utf-8'))
    return found


def broken(folder: Path) -> list:
    "Links in a folder of pages that lead nowhere, or to a heading that is not there"
    pages = {o.resolve(): read_links(o) for o in folder.rglob('*.html') if o.name != '404.html'}
    wrong = []
    for path, found in pages.items():
        for link in found.links:
            if re.match(r'\w+:|//', link) or link in ('', '#'): continue
            file, _, anchor = unquote(link).partition('#')
            target = (path.parent/file.partition('?')[0]).resolve() if file else path
            if target.is_dir(): target /= 'index.html'
            # `__` begins the names of the theme's own switches
            missing = anchor and target in pages and anchor not in pages[target].anchors and anchor[:2] != '__'
            if not target.exists() or missing: wrong.append(f'{path.relative_to(folder.resolve())}: {link}')
    return wrong


def main() -> int:
    "Write, build, look"
    what = sys.argv[1] if len(sys.argv) > 1 else 'build'
    if what not in ('build', 'pages', 'links'):
        raise SystemExit(f'the first word must be build, pages or links, got {what}')
    if what != 'links': write_pages()
    if what == 'build':
        shutil.rmtree(site, ignore_errors=True)
        subprocess.run([sys.executable, '-m', 'zensical', 'build', '--strict', '-f', work/'mkdocs.yml'], check=True)
    if what == 'pages': return 0
    wrong = broken(site)
    print('\n'.join(wrong), file=sys.stderr)
    print(f'{len(list(site.rglob("*.html")))} pages in {site.relative_to(root)}, {len(wrong)} broken links')
    return bool(wrong)


if __name__ == '__main__': sys.exit(main())
