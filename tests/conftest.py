import warnings
import matplotlib

matplotlib.use('Agg')
warnings.filterwarnings('ignore', message='.*torch.jit.*')
