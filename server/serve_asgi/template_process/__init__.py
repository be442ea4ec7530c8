"""The template: the process of a generation that imports the application, and from which its workers are forked."""
