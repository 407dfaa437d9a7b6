"""Notebooks as Markdown pages of the site, from what is saved in them: nothing is run, nor fastai imported.

Hidden cells are left out, exported ones become a heading, a signature with its docments and a source to unfold, and the
outputs are shown. Formulas become MathML, which browsers draw by themselves: no script, no server of others."""
import ast, base64, html, json, re
from pathlib import Path
from latex2mathml.converter import convert

CODE = r'```.*?```|`[^`\n]+`'
MATHS = r'\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?!\s)(?P<inline>[^$\n]+?)(?<![\s\\])\$(?!\w)'
PROGRESS = re.compile(r'<progress|class=.progress')
ANSI = re.compile(r'\x1b\[[0-9;]*m')


def read_cells(path: Path) -> list:
    "Cells of a notebook, the source of each as one string"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [{**cell, 'source': ''.join(cell['source'])} for cell in cells]


def directives(source: str) -> dict:
    "What the lines `#| name value` of a cell say"
    found = re.findall(r'^#\| *([\w-]+):? *(.*)$', source, re.M)
    return dict(found)


def without_directives(source: str) -> str:
    "The code of a cell"
    return re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')


def title(cells: list) -> str:
    "The first heading of a notebook"
    for cell in cells:
        found = re.search(r'^# (.+)$', cell['source'], re.M)
        if cell['cell_type'] == 'markdown' and found: return found[1].strip()
    raise ValueError('a page needs a title; begin a Markdown cell with `# `')


def module(cells: list) -> str:
    "The module that is made of a notebook, '' for a page without one"
    names = [directives(cell['source']).get('default_exp') for cell in cells if cell['cell_type'] == 'code']
    return next(filter(None, names), '')


def definitions(source: str) -> list:
    "Public functions and classes of a cell"
    nodes = ast.parse(source).body
    kinds = ast.FunctionDef, ast.ClassDef
    return [node for node in nodes if isinstance(node, kinds) and not node.name.startswith('_')]


def exported(cells: list) -> list:
    "Public names that a notebook exports"
    said = [cell['source'] for cell in cells if cell['cell_type'] == 'code' and 'export' in directives(cell['source'])]
    return [node.name for source in said for node in definitions(without_directives(source))]


def head(source: str, node) -> str:
    "What stands in front of a body: decorators, name, arguments with their docments"
    begin = min([node.lineno] + [o.lineno for o in node.decorator_list]) - 1
    first = node.body[0]
    lines = source.splitlines()[begin:max(first.lineno - 1, node.lineno)]
    if first.lineno == node.lineno: lines[-1] = lines[-1][:first.col_offset].rstrip()
    return '\n'.join(lines).rstrip()


def signature(source: str, node) -> str:
    "The head of a function, or of a class and its `__init__`"
    text = head(source, node)
    if isinstance(node, ast.FunctionDef): return text
    inits = [o for o in node.body if isinstance(o, ast.FunctionDef) and o.name == '__init__']
    return '\n'.join([text] + [head(source, o) for o in inits])


def fenced(code: str, kind: str = 'python') -> str:
    "A block of code; more backticks than it holds"
    ticks = '````' if '```' in code else '```'
    return f'{ticks}{kind}\n{code}\n{ticks}'


def folded(text: str, name: str) -> str:
    "A block that a click unfolds"
    inside = '\n'.join('    ' + line if line else '' for line in text.splitlines())
    return f'??? quote "{name}"\n\n{inside}'


def documented(node) -> str:
    "The docstring as Markdown"
    text = ast.get_docstring(node) or ''
    text = re.sub(r'\n(?=(Reading|Departure) \()', '\n\n', text)
    parts = re.split(f'({CODE})', text, flags=re.S)
    return ''.join(o if i % 2 else re.sub(r'([*_<\[])', r'\\\1', o) for i, o in enumerate(parts))


def export_page(source: str) -> str:
    "An exported cell: its public names, and the source to unfold"
    nodes = definitions(source)
    parts = [f'### `{node.name}` {{ #{node.name} }}\n\n{fenced(signature(source, node))}\n\n{documented(node)}'
             for node in nodes]
    private = [o.name for o in ast.parse(source).body if hasattr(o, 'name') and o not in nodes]
    name = 'Source' if nodes else f'Source of {", ".join(private)}' if private else 'Imports and names'
    return '\n\n'.join(parts + [folded(fenced(source), name)])


def shown(output: dict, save) -> str:
    "One output as Markdown; `save` keeps a picture and answers with its path"
    data = {k: ''.join(v) if isinstance(v, list) else v for k, v in output.get('data', {}).items()}
    if 'image/png' in data: return f'![What the code above draws]({save(base64.b64decode(data["image/png"]))})'
    if 'text/markdown' in data: return data['text/markdown']
    if 'text/html' in data:
        if PROGRESS.search(data['text/html']): return ''
        return '<div class="output">\n' + re.sub(r'\n\s*\n', '\n', data['text/html']) + '\n</div>'
    text = data.get('text/plain') or ''.join(output.get('text', ''))
    text = ANSI.sub('', text).strip('\n')
    return text and '<pre class="output">' + html.escape(text).replace('\n\n', '\n&#32;\n') + '</pre>'


def code_page(cell: dict, save, prose=str) -> str:
    "A code cell: the code, unless it is hidden, and what it said; Markdown that it said goes through `prose`"
    said = directives(cell['source'])
    code = without_directives(cell['source'])
    if 'hide' in said or 'default_exp' in said or not code.strip(): return ''
    if {'export', 'exporti'} & set(said): text = export_page(code)
    else: text = '' if said.get('echo') == 'false' else fenced(code)
    outputs = []
    for output in cell.get('outputs', []):
        text_of = shown(output, save)
        is_prose = 'text/markdown' in output.get('data', {}) and 'image/png' not in output['data']
        outputs.append(prose(text_of) if is_prose else text_of)
    return '\n\n'.join(filter(None, [text, *outputs]))


def apart(text: str, pattern: str, change) -> str:
    "`change` of all that does not match `pattern`"
    parts, at = [], 0
    for found in re.finditer(pattern, text, re.S | re.M):
        parts += [change(text[at:found.start()]), found[0]]
        at = found.end()
    return ''.join(parts + [change(text[at:])])


def with_maths(text: str) -> str:
    "Formulas as MathML, code left alone"
    def drawn(found):
        if found['block']: return f'\n\n<div class="maths">{convert(found["block"], display="block")}</div>\n\n'
        # a star would be read as emphasis
        return f'<span class="maths">{convert(found["inline"]).replace("*", "&#42;")}</span>'
    # not `apart`: a formula's backslashes and code's dollars have to be seen in one pass
    both = re.compile(f'(?P<code>{CODE})|{MATHS}', re.S)
    return both.sub(lambda found: found[0] if found['code'] else drawn(found), text)


def with_links(text: str, place) -> str:
    "Links as `place` answers for each; those to other sites and within a page are left alone"
    def put(found):
        target, mark, anchor = found[1].partition('#')
        return f']({place(target)}{mark}{anchor})'
    return apart(text, CODE, lambda o: re.sub(r'\]\((?!\w+:|#)([^)\s]+)\)', put, o))


def with_names(text: str, places: dict) -> str:
    "Names in backticks lead to where they are explained"
    def put(found):
        name = found[1]
        return f'[`{name}`]({places[name]})' if name in places else found[0]
    # not in code, headings, links and formulas
    kept = r'```.*?```|^#.*?$|!?\[[^\]]*\]\([^)]*\)|<div class="maths">.*?</div>|<span class="maths">.*?</span>'
    return apart(text, kept, lambda o: re.sub(r'(?<!`)`(\w+)`(?!`)', put, o))


def with_room(text: str) -> str:
    "A blank line in front of lists and tables, which Python-Markdown wants and notebooks do not"
    text = re.sub(r'^(?![-*|]|\d+\. |\s)(.+)\n(?=([-*] |\d+\. |\|))', r'\1\n\n', text, flags=re.M)
    return re.sub(r'^( {2,3})(?=[-*] )', '    ', text, flags=re.M)


def page(cells: list, save, place, places: dict) -> str:
    "A notebook as a Markdown page"
    def prose(text): return with_names(with_maths(with_links(with_room(text), place)), places)
    parts = []
    for cell in cells:
        if cell['cell_type'] == 'markdown': parts.append(prose(cell['source']))
        if cell['cell_type'] == 'code': parts.append(code_page(cell, save, prose))
    name = module(cells)
    if name: parts.insert(1 if parts and parts[0].startswith('# ') else 2, f'`from fastai_featreg.{name} import *`')
    return '\n\n'.join(filter(None, parts)) + '\n'
