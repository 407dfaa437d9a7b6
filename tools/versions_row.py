"""Write the outcome of `tools/versions.sh` into nbs/results/versions.csv, in the place of the job's last one: job,
pytest's XML file, notebooks run, notebooks failed"""
import platform, sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree
import pandas as pd

path = Path(__file__).parent.parent/'nbs/results/versions.csv'


def main(job: str, xml: str, notebooks: str, failed: str):
    "Replace the row of `job`"
    suite = {k: int(v) for k,v in ElementTree.parse(xml).getroot().find('testsuite').attrib.items() if v.isdigit()}
    wrong = suite['failures'] + suite['errors']
    row = dict(job=job, python=platform.python_version(),
               **{p: version(p) for p in ('fastai', 'torch', 'torchvision', 'timm', 'numpy')},
               tests_passed=suite['tests'] - wrong - suite['skipped'], tests_failed=wrong,
               tests_skipped=suite['skipped'],
               notebooks_passed=int(notebooks) - int(failed), notebooks_failed=int(failed), date=date.today())
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(row))
    pd.concat([rows[rows.job!=job], pd.DataFrame([row])]).to_csv(path, index=False)


if __name__ == '__main__': main(*sys.argv[1:])
