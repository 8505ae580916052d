import pytest

from phiscope import errors
from phiscope.cli.exits import UsageError, run_to_exit_code, usage_errors


def fail_with(error):
    def job():
        raise error

    return run_to_exit_code(job)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("two of them"), 2),
        (errors.PointError("no such point"), 2),
        (errors.InputError("no rows"), 2),
        (errors.ConfigError("heads"), 4),
        (errors.CheckpointError("cut short"), 4),
        (errors.TokenizerError("another model's"), 4),
        (errors.HubError("offline"), 4),
        (errors.StoreError("of another job"), 1),
        (errors.ContextLengthError("too long"), 1),
        (errors.UnsupportedError("no GPU"), 1),
        (errors.MissingExtraError("ray"), 1),
        (FileNotFoundError(2, "No such file or directory", "texts.txt"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_one_line(error, code, capfd):
    assert fail_with(error) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("phiscope: ")
    assert err.count("\n") == 1


def test_a_file_error_names_the_file(capfd):
    fail_with(FileNotFoundError(2, "No such file or directory", "texts.txt"))
    assert capfd.readouterr().err == "phiscope: texts.txt: No such file or directory\n"


def test_an_interrupt_exits_with_130(capfd):
    assert fail_with(KeyboardInterrupt()) == 130
    assert capfd.readouterr().err.strip() == "phiscope: interrupted"


def test_an_error_of_ours_that_was_not_foreseen_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        fail_with(ZeroDivisionError("a bug"))


def test_a_refused_value_is_a_usage_error_and_our_errors_stay_what_they_are():
    with pytest.raises(UsageError, match="must not be negative"), usage_errors():
        raise ValueError("temperature must not be negative")
    with pytest.raises(errors.ContextLengthError), usage_errors():
        raise errors.ContextLengthError("too long")


def test_a_warning_is_a_line_of_words(capfd, recwarn):
    import warnings

    def job():
        warnings.warn("3 tensors hold NaN", RuntimeWarning, stacklevel=1)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run_to_exit_code(job) == 0
    assert capfd.readouterr().err == "phiscope: warning: 3 tensors hold NaN\n"
