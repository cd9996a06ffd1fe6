"Sphinx's settings; `scripts/docs.py` writes the pages."
from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project, author = 'simam_ema_fastai', 'the simam_ema_fastai authors'
copyright = '2026 onwards, the simam_ema_fastai authors. Apache-2.0'
extensions = ['myst_nb', 'sphinx_copybutton']
myst_enable_extensions = ['dollarmath', 'deflist']
myst_heading_anchors = 3
nb_execution_timeout = 1800
nb_merge_streams = True
html_theme, html_title = 'furo', project
html_static_path, html_js_files = ['.'], ['keyboard.js']
html_show_search_summary = False  # it would fetch pages, which a browser refuses files
html_math_renderer = 'mathml'  # needs neither script nor network


def setup(app):
    "Formulas become MathML."
    def formula(display):
        def visit(writer, node):
            writer.body.append(convert(node.astext(), display=display))
            raise SkipNode
        return visit, None
    app.add_html_math_renderer('mathml', formula('inline'), formula('block'))
