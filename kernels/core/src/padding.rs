//! Inputs of different lengths in one buffer, and outputs cut back to each request's own length.
//!
//! The reference is `headrace.protocol.padding` for the lengths, `headrace.scheduling.padding` for the rest. Only models with a
//! batch dimension are padded.

use std::ops::Range;
use std::sync::Arc;

use crate::batch::{Gathered, Returned};
use crate::buffer::Pool;
use crate::codec::Part;
use crate::entry::Entry;
use crate::error::{Error, Result, request_prefix};
use crate::spec::Spec;
use crate::validate::{Admitted, Tensor};

/// Of one input of one request, padded. Nothing larger could be sent, so nothing larger is made.
const MAX_BYTES: u128 = (1 << 31) - 1;

/// Of padded inputs; both 0 when nothing is padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Length {
    pub length: u32,
    pub padded: u32,
}

/// The length of admitted inputs, and what they are padded to.
pub fn judge(spec: &Spec, id: &str, inputs: &[Option<Tensor>]) -> Result<Length> {
    let Some(padding) = &spec.padding else {
        return Ok(Length::default());
    };
    let dimension = padding.axis + 1;
    let given = || {
        let padded = inputs.iter().enumerate().filter(|(input, _)| padding.pads[*input].is_some());
        padded.filter_map(|(input, tensor)| tensor.as_ref().map(|tensor| (&spec.inputs[input].name, tensor)))
    };
    let Some((first, tensor)) = given().next() else {
        return Ok(Length::default());
    };
    let length = tensor.shape[dimension];
    let wrong = |name: &str, size: i64, told: String| {
        let who = format!("{}input '{name}' of model '{}'", request_prefix(id), spec.name);
        Error::invalid(format!("{who} has length {size} along dimension {dimension}{told}"))
    };
    for (other, tensor) in given() {
        if tensor.shape[dimension] != length {
            let told = format!(", but input '{first}' has {length}: send inputs of the same length");
            return Err(wrong(other, tensor.shape[dimension], told));
        }
    }
    if length == 0 {
        return Err(wrong(first, 0, ": send at least 1".to_owned()));
    }
    let Some(&padded) = padding.edges.get(padding.edges.partition_point(|edge| *edge < length)) else {
        let largest = padding.edges.last().copied().unwrap_or_default();
        let told = format!("; the largest bucket is {largest}: send at most that, or configure a larger one");
        return Err(wrong(first, length, told));
    };
    for (other, tensor) in given() {
        let nbytes = tensor.data.len() as u128 / length as u128 * padded as u128;
        if nbytes > MAX_BYTES {
            let told =
                format!("; padded to {padded} it has {nbytes} bytes, more than the {MAX_BYTES} that there may be: send less");
            return Err(wrong(other, length, told));
        }
    }
    // Edges fit into 31 bits.
    Ok(Length { length: length as u32, padded: padded as u32 })
}

/// Whether an input that was given, or was not, is one that the model sees padded. Of requests that have a length only.
pub fn is_padded(spec: &Spec, input: usize, is_given: bool) -> bool {
    spec.padding.as_ref().is_some_and(|padding| padding.pads[input].is_some()) && (is_given || is_made(spec, input))
}

/// Whether an input is made where it is left out.
pub fn is_made(spec: &Spec, input: usize) -> bool {
    spec.padding.as_ref().is_some_and(|padding| padding.mask == Some(input))
}

/// The shape that a padded input has for the model, without the batch dimension.
pub fn inner_shape(spec: &Spec, input: usize, tensor: Option<&Tensor>, padded: u32) -> Vec<i64> {
    let mut shape = tensor.map_or_else(|| spec.inputs[input].dims.clone(), |tensor| tensor.shape[1..].to_vec());
    if let Some(padding) = &spec.padding {
        shape[padding.axis] = i64::from(padded);
    }
    shape
}

/// Whether two shapes of an input are the same but for the rows and, if it is padded, for the length.
pub fn are_alike(spec: &Spec, input: usize, a: &[i64], b: &[i64]) -> bool {
    let from = usize::from(spec.batches());
    let axis = spec.padding.as_ref().filter(|padding| padding.pads[input].is_some()).map(|padding| padding.axis);
    let sizes = a[from..].iter().zip(&b[from..]).enumerate();
    a.len() == b.len() && { sizes }.all(|(place, (a, b))| a == b || Some(place) == axis)
}

/// Elements along the padded dimension that nobody sent; no more than a record holds.
pub fn counted<'a>(members: impl Iterator<Item = &'a Admitted>) -> u32 {
    let missing = members.map(|member| u64::from(member.rows) * u64::from(member.padded - member.length));
    u32::try_from(missing.sum::<u64>()).unwrap_or(u32::MAX)
}

/// One padded input of requests of one bucket: rows stacked, all of one length, made where it is the mask and left out. None: it
/// is not there, or needs no padding.
pub fn gather(spec: &Spec, pool: &Arc<Pool>, input: usize, members: &[&Admitted]) -> Option<Gathered> {
    let padding = spec.padding.as_ref()?;
    let pad = padding.pads[input].as_ref()?;
    let padded = members.first().map(|member| member.padded).filter(|padded| *padded > 0)?;
    let first = members.iter().find_map(|member| member.inputs[input].as_ref());
    let is_ready = |member: &&Admitted| member.inputs[input].is_some() && member.length == member.padded;
    if members.iter().all(is_ready) || !is_padded(spec, input, first.is_some()) {
        return None;
    }
    let inner = inner_shape(spec, input, first, padded);
    let size = |sizes: &[i64]| sizes.iter().product::<i64>() as usize;
    let (blocks, step) = (size(&inner[..padding.axis]), size(&inner[padding.axis + 1..]) * pad.element.len());
    let rows: usize = members.iter().map(|member| member.rows as usize).sum();
    let mut data = pool.take(rows * blocks * padded as usize * step);
    let mut to = data.as_mut_slice();
    for member in members {
        let (real, all) = (member.length as usize * step, padded as usize * step);
        let tensor = member.inputs[input].as_ref();
        for block in 0..member.rows as usize * blocks {
            let (mine, rest) = to.split_at_mut(all);
            to = rest;
            let (kept, added) = mine.split_at_mut(real);
            match tensor {
                Some(tensor) => kept.copy_from_slice(&tensor.data[block * real..][..real]),
                None => fill(kept, &pad.one),
            }
            fill(added, &pad.element);
        }
    }
    let mut shape = vec![rows as i64];
    shape.extend(inner);
    Some(Gathered { input, shape, data, offsets: None })
}

fn fill(to: &mut [u8], element: &[u8]) {
    if element.iter().all(|byte| *byte == 0) {
        return to.fill(0);
    }
    for place in to.chunks_exact_mut(element.len()) {
        place.copy_from_slice(element);
    }
}

/// Mates are padded to the longest of them: their bucket said no more than that they are about as long.
pub fn settle(mates: &mut [Box<Entry>]) {
    let longest = mates.iter().map(|mate| mate.admitted.length).max().unwrap_or(0);
    if longest > 0 {
        mates.iter_mut().for_each(|mate| mate.admitted.padded = longest);
    }
}

/// An output of one request, cut back: what is on the wire, and its shape.
pub struct Cut {
    pub wire: Vec<u8>,
    pub shape: Vec<i64>,
}

/// Rows of an output, or all of it, cut back to the request's own length; None where nothing has to be cut.
pub fn cut(spec: &Spec, returned: &Returned<'_>, rows: Option<Range<usize>>, admitted: &Admitted) -> Result<Option<Cut>> {
    let (length, padded) = (admitted.length as usize, admitted.padded as usize);
    let is_whole = spec.padding.as_ref().is_some_and(|padding| padding.whole[returned.output]);
    let varies = |dim: &i64| *dim == -1 && !is_whole;
    let dimension = spec.outputs[returned.output].dims.iter().position(varies);
    let (Some(dimension), true) = (dimension.map(|place| place + 1), length < padded) else {
        return Ok(None);
    };
    let mut shape = returned.shape.to_vec();
    if shape.get(dimension) != Some(&(padded as i64)) {
        return Err(Error::broken("an output has another length than its inputs"));
    }
    let rows = rows.unwrap_or(0..shape[0] as usize);
    let size = |sizes: &[i64]| sizes.iter().product::<i64>() as usize;
    let (blocks, step) = (size(&shape[1..dimension]), size(&shape[dimension + 1..]));
    let width = match returned.offsets {
        Some(_) => 1,
        None => returned.data.len().checked_div(size(&shape)).unwrap_or(0),
    };
    let mut wire = Vec::with_capacity(rows.len() * blocks * length * step * width);
    for block in rows.start * blocks..rows.end * blocks {
        let elements = block * padded * step..(block * padded + length) * step;
        match returned.offsets {
            Some(offsets) => {
                let data = returned.data;
                Part::Elements { offsets: &offsets[elements.start..=elements.end], data }.write(&mut wire);
            }
            None => wire.extend_from_slice(&returned.data[elements.start * width..elements.end * width]),
        }
    }
    (shape[0], shape[dimension]) = (rows.len() as i64, length as i64);
    Ok(Some(Cut { wire, shape }))
}
