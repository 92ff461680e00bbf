"""What every processor must do: catalogzero's contract suite, run against this one."""

from catalogzero.testing import ProcessorContract

{{ cookiecutter.module_path | import_line(cookiecutter.class_name) }}


class Test{{ cookiecutter.class_name }}(ProcessorContract):
    """Each check has a name: `exclude = {"name": "why it does not hold here"}` leaves one out."""

    handler_class = {{ cookiecutter.class_name }}
