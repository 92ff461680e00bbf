"""{{ (cookiecutter.product_name ~ ": " ~ cookiecutter.description) | docstring }}"""
