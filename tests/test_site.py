"The site: pages of what notebooks hold, links that are looked up, and ten pages in a browser"
import re, shutil, subprocess, sys
from pathlib import Path
import pytest

pytest.importorskip('ziamath', reason="needs the extra: pip install -e '.[docs]'")
pytest.importorskip('yaml', reason="needs the extra: pip install -e '.[docs]'")
root = Path(__file__).parent.parent
sys.path.append(str(root/'tools'))
import docs, notebook_pages as pages

looked_at = ['index', 'results/cards', 'results/compatibility', 'results/cost', 'results/readings', 'troubleshooting',
             'methods/10_feature_mining', 'methods/30_cam_loss', 'comparison/80_compare', '17_reach']


def code(source, *outputs): return dict(cell_type='code', source=source, outputs=list(outputs))
def text(source): return dict(cell_type='markdown', source=source)
def made(*cells): return pages.page(list(cells), lambda o: f'{len(o)}.png', lambda o: o + '!', {'Known': 'a.md#Known'})


def test_hidden_cells_and_directives():
    page = made(text('# T'), code('#| default_exp maps'), code('#| hide\nsecret'), code('#| eval: false\nshown()'))
    assert page == '# T\n\n`from fastai_featreg.maps import *`\n\n```python\nshown()\n```\n'


def test_an_exported_cell_is_heading_signature_docstring_and_source():
    page = made(code('#| export\ndef f(\n    x:int, # what\n):\n    "Says `a*b`, and *"\n    return x'))
    assert '### `f` { #f }\n\n```python\ndef f(\n    x:int, # what\n):\n```\n\nSays `a*b`, and \\*' in page
    assert '??? quote "Source"\n\n    ```python\n    def f(' in page


@pytest.mark.parametrize('source,expected', [
    ('def f(x): return x', 'def f(x):'),
    ('@patch\ndef f(self:A):\n    "Doc"', '@patch\ndef f(self:A):'),
    ('class A(B):\n    "Doc"\n    c = 1\n    def __init__(self, x=1): self.x = x',
     'class A(B):\n    def __init__(self, x=1):'),
])
def test_signatures(source, expected):
    assert pages.signature(source, pages.definitions(source)[0]) == expected


def test_outputs():
    def said(**data):
        data = {k.replace('_', '/'): v for k, v in data.items()}
        return pages.shown(dict(data=data), lambda o: 'p.png')
    assert said(text_plain='<Axes: >') == '<pre class="output">&lt;Axes: &gt;</pre>'
    assert said(text_plain='x', image_png='aGk=') == '![What the code above draws](p.png)'
    assert said(text_plain='x', text_html='<b>\n\n1</b>') == '<div class="output">\n<b>\n1</b>\n</div>'
    assert said(text_html='<progress value=1>') == ''
    assert pages.shown(dict(text='\x1b[31mred\x1b[0m\n'), None) == '<pre class="output">red</pre>'


def test_a_picture_beside_markdown_is_no_link():
    outputs = [{'data': {'text/markdown': '[A](a.ipynb)'}}, {'data': {'image/png': 'YWJj', 'text/plain': '<Figure>'}}]
    page = made(code('both()', *outputs))
    assert '[A](a.ipynb!)' in page and '](3.png)' in page


def test_formulas_and_code():
    page = made(text('With $x_1$ and `$y$`, \\$5 and\n$$\\frac{a}{b}$$'))
    assert page.count('<math') == 2 and '`$y$`' in page and '\\$5' in page and 'mfrac' in page


def test_links_and_names():
    page = made(text('# `Known`\n\nA [b](c.ipynb#d), [e](http://f), [g](#h), `Known`, `other`, [`Known`](i)'))
    assert page == '# `Known`\n\nA [b](c.ipynb!#d), [e](http://f), [g](#h), [`Known`](a.md#Known), `other`, ' \
                   '[`Known`](i!)\n'


def test_lists_and_tables_get_room():
    assert pages.with_room('a\n- b\n- c\n  d\ne\n| f |\n|---|') == 'a\n\n- b\n- c\n  d\ne\n\n| f |\n|---|'


def test_navigation():
    nav = ['b', {'S': ['a/*', 'c*']}, {'Empty': ['d*']}]
    assert docs.expanded(nav, ['a/1', 'a/2', 'b', 'c1']) == ['b', {'S': ['a/1', 'a/2', 'c1']}]
    with pytest.raises(ValueError, match='must name every notebook'): docs.expanded(nav, ['b', 'e'])
    assert docs.named([{'S': ['nbs/x.ipynb']}], {'nbs/x.ipynb': 'X'}) == [{'S': 'x.md'}]
    assert docs.where('nbs/_template.ipynb') == 'template.md'


def test_broken_links_are_found(tmp_path):
    (tmp_path/'a.html').write_text('<a href="b.html#there"></a><a href="b.html#gone"></a><img src="c.png">'
                                   '<a href="http://x"></a><a href="#own"></a><h2 id="own"></h2>')
    (tmp_path/'b.html').write_text('<h2 id="there"></h2><a href="../d.html"></a>')
    assert sorted(docs.broken(tmp_path)) == ['a.html: b.html#gone', 'a.html: c.png', 'b.html: ../d.html']


@pytest.fixture(scope='module')
def built():
    "The site, built by the command"
    pytest.importorskip('zensical', reason="needs the extra: pip install -e '.[docs]'")
    done = subprocess.run([sys.executable, root/'tools/docs.py'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return docs.site


@pytest.fixture(scope='module')
def browser():
    "The path of a browser"
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    return found or pytest.skip('needs a browser: apt-get install chromium')


@pytest.mark.slow
def test_every_notebook_has_a_page(built):
    assert [o for o in docs.sources() if not (built/docs.where(o)).with_suffix('.html').exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize('page', looked_at)
def test_in_a_browser(page, built, browser, tmp_path):
    options = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}',
               '--virtual-time-budget=4000']
    done = subprocess.run([browser, *options, '--dump-dom', (built/f'{page}.html').as_uri()], capture_output=True,
                          text=True, timeout=180)
    dom = done.stdout
    # drawn to its end, by scripts that ran; and no leftover of what pages are written in
    assert '<footer' in dom and 'js' in dom.split('>', 2)[1]
    body = re.sub(r'<(code|pre)\b.*?</\1>', '', dom[dom.index('<article'):dom.index('</article')], flags=re.S)
    assert all(o not in body for o in ('$$', '#| ', '.ipynb)', '??? quote', '](')), page
    loaded = [o for o in dom.split('<') if o.startswith(('script', 'link rel="stylesheet'))]
    assert 'https://' not in ''.join(loaded), page
