import time, warnings
import matplotlib, pytest, torch

matplotlib.use('Agg')
warnings.filterwarnings('ignore', message='.*torch.jit.*')
started = time.monotonic()


def pytest_addoption(parser):
    parser.addoption('--test-device', default='cuda', help='of the tests marked cuda; cpu tries them without a GPU')
    parser.addoption('--test-seconds', type=float, default=float('inf'), help='skip what has not begun by then')


def pytest_runtest_setup(item):
    wanted = item.config.getoption('test_device') if item.get_closest_marker('cuda') else 'cpu'
    if wanted=='cuda' and not torch.cuda.is_available(): pytest.skip('needs a CUDA GPU')
    if time.monotonic() - started>item.config.getoption('test_seconds'): pytest.skip('no time was left')


@pytest.fixture
def device(request): return request.config.getoption('test_device')
