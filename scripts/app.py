"A Gradio app for an exported model: `python scripts/app.py MODEL`, with `--trust` for a pickle. Needs the extra `app`."
import sys

import gradio as gr

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.runtime.classifier import open_model

try: model = open_model(next((a for a in sys.argv[1:] if a != '--trust'), 'MODEL'), trust='--trust' in sys.argv)
except UserError as e: print(f'app.py: {e}', file=sys.stderr); sys.exit(2)


def classify(file):
    try: return dict(model.classify([file])[0]) if file else None
    except UserError as e: raise gr.Error(str(e), print_exception=False) from None


image = gr.Image(type='filepath', image_mode=None, sources=['upload', 'webcam', 'clipboard'], label='An image')
classes = gr.Label(num_top_classes=5, label='Class')
app = gr.Interface(classify, image, classes, title='What is in the image?', flagging_mode='never',
                   analytics_enabled=False)
if __name__ == '__main__': app.launch()
