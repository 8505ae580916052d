from phiscope.training.corpus import Document
from phiscope.training.questions import make_questions

PAGE = """\
.. function:: join(path, *paths)

   Join one or more path segments intelligently.  The :mod:`os.path` module
   is imported, see :func:`~os.path.split <split>`.

   A second paragraph.

.. class:: Other
"""
SOURCE = '''\
def visible(x, y=2):
    """Do what a visible function does here.

    More.
    """


def _hidden():
    """Not a function that anybody asks for."""
'''


def test_a_directive_answers_with_its_first_paragraph():
    (made,) = make_questions([Document("library/os.path.rst.txt", PAGE)])
    assert made.text == (
        "Instruct: What does `join` do?\nOutput: Join one or more path segments intelligently. "
        "The `os.path` module is imported, see `os.path.split`.\n"
    )


def test_a_public_docstring_answers_under_its_full_name():
    (made,) = make_questions([Document("pack/age.py", SOURCE)])
    assert made.text == (
        "Instruct: What does `pack.age.visible` do?\n"
        "Output: Do what a visible function does here.\n"
    )


def test_tests_and_broken_sources_answer_nothing():
    broken = Document("broken.py", SOURCE + "def (:\n")
    assert not list(make_questions([Document("test_age.py", SOURCE), broken]))
