"""Looking inside a model, from what it computes to why it says what it says.

| the question                                        | the file                       |
| --------------------------------------------------- | ------------------------------ |
| what is there to look at                            | hooks.py                       |
| what was computed, and what if it were another      | capture.py                     |
| … and how is that done without touching the model   | watching.py                    |
| how far is a backend from the formulas              | distance.py                    |
| what does each head look at, and is it a known type | attention.py, head_types.py    |
| what would each layer predict                       | lens.py                        |
| how much does a part matter to the loss             | ablation.py, on masked_text.py |
| where does one sentence's run part from another's   | patching.py                    |
| what is a logit the sum of                          | logit_attribution.py           |
| which words decide                                  | attribution.py                 |
| which words, and which layers, are alike            | neighbours.py, similarity.py   |
| what can be read off a layer                        | probing.py                     |
| how far have the weights moved                      | drift.py                       |
"""
