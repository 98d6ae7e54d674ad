"""Numbers from papers, for a sense of scale: other data, other sizes, other protocols. Never compared with ours in one table.

ScanNetv2 test and 7-Scenes, posed video depth, as the results script of DoubleTake (ECCV 2024) lists them, which extends
the table of SimpleRecon (ECCV 2022). Metres; a5 is the share with delta < 1.05, a25 with delta < 1.25, in per cent.
"""

SOURCE = "DoubleTake's results script, which extends the SimpleRecon table (ScanNetv2 test, 7-Scenes)"
HEADER = ("abs_diff", "abs_rel", "sq_rel", "a5 %", "a25 %")
DATASETS = ("ScanNetv2", "7-Scenes")
ROWS = (
    ("DPSNet", (".1552", ".0795", ".0299", "49.36", "93.27"), (".1966", ".1147", ".0550", "38.81", "87.07")),
    ("MVDepthNet", (".1648", ".0848", ".0343", "46.71", "92.77"), (".2009", ".1161", ".0623", "38.81", "87.70")),
    ("DELTAS", (".1497", ".0786", ".0276", "48.64", "93.78"), (".1915", ".1140", ".0490", "36.36", "88.13")),
    ("GP-MVS", (".1494", ".0757", ".0292", "51.04", "93.96"), (".1739", ".1003", ".0462", "42.71", "90.32")),
    (
        "DeepVideoMVS fusion",
        (".1186", ".0583", ".0190", "60.20", "96.76"),
        (".1448", ".0828", ".0335", "47.96", "93.79"),
    ),
    ("SimpleRecon", (".0873", ".0430", ".0128", "74.11", "98.05"), (".1045", ".0575", ".0156", "60.12", "97.33")),
    ("DoubleTake online", (".0768", ".0370", ".0112", "79.8", "98.35"), (".0951", ".0520", ".0149", "65.98", "97.34")),
)
