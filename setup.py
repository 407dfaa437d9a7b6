"Packaging metadata, read from settings.ini (see CONTRIBUTING.md); everything static is in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser(delimiters='=')
cfg.read(Path(__file__).parent/'settings.ini')
cfg = cfg['DEFAULT']

setup(version=cfg['version'], install_requires=cfg['requirements'].split(),
      extras_require={'dev': cfg['dev_requirements'].split(), 'launch': cfg['launch'].split()})
