"""A method's depth for each sample of every suite, once: predictions/<method>. Scores are made from these files."""

from plumbline.config import load_params
from plumbline.prediction import predict_method
from plumbline.stage import record, run


def main(method: str) -> None:
    """Predict with `method`: a baseline, or a trained system."""
    params = load_params()
    seconds = predict_method(params, method)
    record("predict", method, params, params=params["systems"][method] or {}, metrics={"seconds_per_sample": seconds})


if __name__ == "__main__":
    run(main)
