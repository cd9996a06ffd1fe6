"A Gradio app on an exported model: `python scripts/app.py MODEL`, with `--trust` for a pickle. Takes the extra `app`."
import sys

import gradio as gr

from simam_ema_fastai.runtime import open_model

model = open_model(sys.argv[1], trust='--trust' in sys.argv)


def classify(file): return dict(model.classify([file])[0]) if file else None


picture = gr.Image(type='filepath', image_mode=None, sources=['upload', 'webcam', 'clipboard'], label='A picture')
app = gr.Interface(classify, picture, gr.Label(num_top_classes=5, label='Class'), title='What is in the picture?', flagging_mode='never', analytics_enabled=False)
if __name__ == '__main__': app.launch()
