"""What can be seen to be wrong in a pass, told in one sentence: nearly free, in every pass.

An error of the user's code keeps its class and text, with the batch and the module in front. A graph is looked at in
the first batch: which leaves it has, and in which precision it computes.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from frechet.errors import NotDifferentiable, UnusableObjective
from frechet.objective._data import Batch
from frechet.objective._functions import Functions
from frechet.objective._structure import leaves_of
from frechet.objective._torch_internals import dtypes_of, in_forward_mode, is_users_function, nodes_of

if TYPE_CHECKING:
    from frechet.objective._snapshot import Snapshot

_HALVES = {torch.float16, torch.bfloat16}


def mark(leaf: Tensor) -> Tensor:
    """`leaf`, known as a point of derivatives, so that a graph on one that is past is told."""
    leaf._frechet_leaf = True  # type: ignore[attr-defined]
    return leaf


def refuse_graph(outputs: Tensor, blocks: Mapping[str, Tensor], functions: Functions, dtype: torch.dtype) -> None:
    """Raise where the graph of the outputs of a model at `blocks` shows that their derivatives would be wrong."""
    here = {id(t) for t in blocks.values()}
    for node in nodes_of([outputs]):
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in here:
            _refuse_leaf(leaf, functions)
        functions.custom = functions.custom or is_users_function(node)
        halves = dtypes_of(node) & _HALVES
        if halves:
            raise half_precision(type(node).__name__.split("Backward")[0], halves.pop(), dtype)


def refuse_kept(term: Tensor, blocks: Mapping[str, Tensor], functions: Functions) -> None:
    """Raise where a penalty hangs on the model's parameters by a tensor that the model kept from another pass."""
    here = {id(t) for t in blocks.values()}
    for node in nodes_of([term]):
        leaf = getattr(node, "variable", None)
        name = None if leaf is None or id(leaf) in here else functions.names.get(id(leaf))
        if name is not None:
            raise UnusableObjective(
                "Penalty: function must be one of the parameters alone, but it reads a tensor that the model computed "
                f"from '{name}' in an earlier forward pass and kept, such as an auxiliary loss in an attribute; let "
                "forward return that tensor, or add the attribute to the terms in custom(...), which reads what the "
                "pass left there"
            )


def half_precision(operation: str, half: torch.dtype, dtype: torch.dtype) -> UnusableObjective:
    return UnusableObjective(
        f"Objective: operation '{operation}' runs in {half}, though the parameters have {dtype}, so that derivatives "
        "are rounded to a few digits; a module casts by itself: let it take the dtype of its input"
    )


def _refuse_leaf(leaf: Tensor, functions: Functions) -> None:
    name = functions.names.get(id(leaf))
    if name is not None:
        raise NotDifferentiable(
            f"Objective: the model uses its parameter '{name}' by a way that cannot be followed (a "
            "torch.autograd.Function or compiled code that keeps it), so its derivative would be left out; pass the "
            "parameter of the module to that function at every call"
        )
    if getattr(leaf, "_frechet_leaf", False) and not in_forward_mode():  # there the leaves are inside of dual numbers
        raise UnusableObjective(
            "Objective: the model uses a tensor that it computed from its parameters in an earlier pass and kept (in a "
            "cache outside of its modules), so derivatives would be left out; clear that cache before each pass, or "
            "keep the tensor as a plain attribute of its module"
        )


def explained(error: Exception, snapshot: Snapshot, batch: Batch) -> Exception:
    """The error of a forward pass, of the same class where that can be caught, with the batch and the module named."""
    text = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, RuntimeError | ValueError | TypeError):
        return error
    if "more than 1 value per channel" in text:
        return UnusableObjective(
            f"Objective: batch {batch.index} has one value per channel, so its variance is zero: {text}; use "
            "another batch size, or model.eval()"
        )
    if isinstance(error, RuntimeError | ValueError) and any(w in text for w in ("dtype", "scalar type", "Input type")):
        return misfit(snapshot, batch, text)
    if isinstance(error, TypeError) and any(isinstance(leaf, np.ndarray) for leaf in leaves_of(batch.inputs)):
        return TypeError(
            f"Objective: batch {batch.index}: the model takes tensors, got NumPy arrays in the inputs: {text}; convert "
            "them, by a DataLoader or by split=lambda batch: (torch.as_tensor(batch[0]), torch.as_tensor(batch[1]))"
        )
    config = getattr(snapshot.model, "config", None)
    if getattr(config, "is_encoder_decoder", False) and _lacks_decoder_inputs(batch.inputs):
        return UnusableObjective(
            f"Objective: batch {batch.index}: {type(snapshot.model).__name__} is an encoder-decoder model and got no "
            "inputs for its decoder, since the labels are taken out of the batch; pass split=seq2seq, which leaves "
            f"them in ({text})"
        )
    error.add_note(f"Objective: in batch {batch.index}{where(error, snapshot.model)}")
    return error


def _lacks_decoder_inputs(inputs: Any) -> bool:
    return isinstance(inputs, dict) and not inputs.keys() & {"labels", "decoder_input_ids", "decoder_inputs_embeds"}


def where(error: BaseException, model: nn.Module) -> str:
    """The innermost module of `model` in whose code an error was raised, as ", module 'name' (Kind)"."""
    names = {id(m): name for name, m in model.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            name = names[id(owner)]
            found = f", module '{name}' ({type(owner).__name__})" if name else f", {type(owner).__name__}.forward"
    return found


def misfit(snapshot: Snapshot, batch: Batch, what: str) -> TypeError:
    """The error for data and a model of different dtypes."""
    if any(part.dtype is not None for part in snapshot.parts):
        return TypeError(
            f"Objective: batch {batch.index}: with dtype={snapshot.space.dtype} parameters, buffers and inputs have "
            f"this dtype, but a module or hook makes another one: {what}; let it take the dtype of its input"
        )
    return TypeError(
        f"Objective: batch {batch.index} and the {snapshot.space.dtype} model do not fit together: {what}; convert "
        "the data or the model"
    )
