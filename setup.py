"Packaging metadata, read from settings.ini (see CONTRIBUTING.md); everything static is in pyproject.toml."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters='=')
cfg.read(here/'settings.ini')
cfg = cfg['DEFAULT']


def absolute(text: str, repository: str) -> str:
    "Links and pictures of the README as they work outside of the repository"
    def link(m):
        kind = 'raw' if m[1] else 'blob'
        return f'{m[1]}[{m[2]}]({repository}/{kind}/v{cfg["version"]}/{m[3]})'
    return re.sub(r'(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)', link, text)


def pages(repository: str) -> dict:
    "What a package index links to"
    return {'Repository': repository, 'Issues': f'{repository}/issues',
            'Changes': f'{repository}/blob/main/CHANGELOG.md'}


readme,repository = (here/'README.md').read_text(encoding='utf-8'),cfg['repository'].strip().rstrip('/')
setup(version=cfg['version'], install_requires=cfg['requirements'].split(),
      extras_require={'dev': cfg['dev_requirements'].split(), 'launch': cfg['launch'].split(),
                      'docs': cfg['docs'].split()},
      long_description=absolute(readme, repository) if repository else readme,
      long_description_content_type='text/markdown', project_urls=pages(repository) if repository else {})
