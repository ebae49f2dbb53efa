"""`bert inspect`: what a model does with a text, as one static page that asks for nothing."""
