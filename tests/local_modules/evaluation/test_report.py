"""What a person reads of an evaluation, against numbers worked by hand."""

from local_modules.evaluation.report import cells, headings, operating_points, table

COSINE = {
    "eer": 0.0123,
    "eer_convex_hull": 0.0111,
    "min_cllr": 0.0456,
    "min_dcf_0.01": 0.2341,
    "min_dcf_0.05": 0.1234,
    "intervals": {"eer": (0.005, 0.0217)},
}
RATIOS = {
    **COSINE,
    "eer": 0.1,
    "act_dcf_0.01": 0.3456,
    "act_dcf_0.05": 0.2222,
    "cllr": 0.0789,
    "p_value": 0.0396,
    "threshold_0.01": 4.61,
    "far_0.01": 0.0004,
    "frr_0.01": 0.25,
    "threshold_0.05": 2.94,
    "far_0.05": 0.0321,
    "frr_0.05": 0.1257,
}
SYSTEMS = {"cosine": COSINE, "calibrated": RATIOS}


def test_rates_are_in_percent_and_costs_are_not():
    names = headings(SYSTEMS)
    assert dict(zip(names, cells(RATIOS, SYSTEMS), strict=True)) == {
        "EER %": "10.00",
        "95 %": "0.50 to 2.17",
        "hull %": "1.11",
        "minDCF 0.01": "0.234",
        "minDCF 0.05": "0.123",
        "actDCF 0.01": "0.346",
        "actDCF 0.05": "0.222",
        "Cllr": "0.079",
        "minCllr": "0.046",
        "p": "0.040",
    }
    of_cosine = dict(zip(names, cells(COSINE, SYSTEMS), strict=True))
    assert of_cosine["EER %"] == "1.23"
    # It has no actual cost, and is what the other is compared with.
    unknown = [name for name, text in of_cosine.items() if not text]
    assert unknown == ["actDCF 0.01", "actDCF 0.05", "Cllr", "p"]
    alone = {"cosine": COSINE}
    assert headings(alone) == [name for name in names if name not in unknown]
    assert all(cells(COSINE, alone))


def test_an_interval_that_is_unknown():
    unknown = {**COSINE, "intervals": {"eer": None}}
    assert cells(unknown, {"cosine": unknown})[1] == "?"


def test_numbers_stand_beneath_their_headings():
    head, *rows = table(SYSTEMS).splitlines()
    for name, row in zip(SYSTEMS, rows, strict=True):
        assert row.startswith(f"{name} ")
        row, texts = row.ljust(len(head)), cells(SYSTEMS[name], SYSTEMS)
        for heading, text in zip(headings(SYSTEMS), texts, strict=True):
            end = f"{head} ".index(f" {heading} ") + 1 + len(heading)
            assert row[:end].endswith(f" {text}")


def test_each_operating_point_says_who_passes_and_who_is_refused():
    assert operating_points({"a": RATIOS, "b": COSINE}) == [
        "If 1 % of the claims are true and both errors cost the same, accept "
        "log-likelihood ratios of 4.61 or more: 0.04 % of the false claims are "
        "accepted, 25.00 % of the true ones rejected.",
        "If 5 % of the claims are true and both errors cost the same, accept "
        "log-likelihood ratios of 2.94 or more: 3.21 % of the false claims are "
        "accepted, 12.57 % of the true ones rejected.",
    ]
    assert operating_points({"a": COSINE}) == []
    named = operating_points({"a": RATIOS, "b": RATIOS})
    names = [point.partition("If ")[0] for point in named]
    assert names == ["a: ", "a: ", "b: ", "b: "]
