"""The backend that Keras takes, and what the command line says that it takes and why."""

import json

import keras

from pernodedrop.commands import framework

print(json.dumps([keras.backend.backend(), *framework.of_keras()]))
