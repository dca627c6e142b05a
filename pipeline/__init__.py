"""The pipeline. Its commands are run by `python -m pipeline.NAME`.

The stages of dvc.yaml, in order (stage `compile` is a call of make):
    check_params  refuse wrong params before DVC removes results
    download      fetch the data set and check it
    prepare       resample, set validation images aside, measure the pixels
    train         train the model
    export        write the model file of the C engine
    evaluate      score the engine on the test images and compare it with PyTorch
    benchmark     time the engine and PyTorch
    track         store the run in MLflow

Other commands:
    demo                 run the pipeline on small data, in a copy of the project
    example_pictures     write a small data set as a folder of pictures
    study                compare trainings that differ in one choice each
    seeds                score final models of several seeds
    search               search params with a low validation loss
    rekey                keep the recorded trainings after a refactoring
    report               write all results to one HTML page
    release.gate         compare results with those of another revision
    release.gate_speed   compare the engine's speed with that of another revision
    release.promote      publish the model if the gate passes
    release.champion     fetch the promoted model if it is the one that was promoted

A command checks its arguments (`if __name__ == "__main__"`) above its imports of slow packages, as
torch: so `--help` and a refused option or value take less than a second.

The folders hold what commands use. common: anything shared; tracking: MLflow; series: the trainings
of study, seeds and search; release: gates, promotion, model card; report: the HTML report.
"""

import sys
from pathlib import Path

# Use the library next to this folder, even in DVC's temp copy of the project while another copy is
# installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
