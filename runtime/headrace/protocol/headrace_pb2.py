"""Generated from headrace.proto by tools/generate_protocol.py: do not edit."""

from google.protobuf import message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from headrace.protocol.pool import POOL

DESCRIPTOR = POOL.AddSerializedFile(
    b'\n\x0eheadrace.proto\x12\tinference"\x13\n\x11ServerLiveRequest"(\n\x12ServerLiveRe'
    b'sponse\x12\x12\n\x04live\x18\x01 \x01(\x08R\x04live"\x14\n\x12ServerReadyRequest"+\n\x13ServerReadyR'
    b'esponse\x12\x14\n\x05ready\x18\x01 \x01(\x08R\x05ready"A\n\x11ModelReadyRequest\x12\x12\n\x04name\x18\x01 \x01(\t'
    b'R\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07version"*\n\x12ModelReadyResponse\x12\x14\n\x05ready\x18'
    b'\x01 \x01(\x08R\x05ready"\x17\n\x15ServerMetadataRequest"f\n\x16ServerMetadataResponse\x12'
    b'\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07version\x12\x1e\n\nextensions\x18\x03 \x03('
    b'\tR\nextensions"D\n\x14ModelMetadataRequest\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x18\n\x07ver'
    b'sion\x18\x02 \x01(\tR\x07version"\xe0\x03\n\x15ModelMetadataResponse\x12\x12\n\x04name\x18\x01 \x01(\tR\x04nam'
    b'e\x12\x1a\n\x08versions\x18\x02 \x03(\tR\x08versions\x12\x1a\n\x08platform\x18\x03 \x01(\tR\x08platform\x12G\n\x06inp'
    b'uts\x18\x04 \x03(\x0b2/.inference.ModelMetadataResponse.TensorMetadataR\x06inpu'
    b'ts\x12I\n\x07outputs\x18\x05 \x03(\x0b2/.inference.ModelMetadataResponse.TensorMeta'
    b'dataR\x07outputs\x12P\n\nproperties\x18\x06 \x03(\x0b20.inference.ModelMetadataRespo'
    b'nse.PropertiesEntryR\nproperties\x1aV\n\x0eTensorMetadata\x12\x12\n\x04name\x18\x01 \x01(\tR'
    b'\x04name\x12\x1a\n\x08datatype\x18\x02 \x01(\tR\x08datatype\x12\x14\n\x05shape\x18\x03 \x03(\x03R\x05shape\x1a=\n\x0fPrope'
    b'rtiesEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12\x14\n\x05value\x18\x02 \x01(\tR\x05value:\x028\x01"\xd7\x01\n\x0eInfer'
    b'Parameter\x12\x1f\n\nbool_param\x18\x01 \x01(\x08H\x00R\tboolParam\x12!\n\x0bint64_param\x18\x02 \x01(\x03H'
    b'\x00R\nint64Param\x12#\n\x0cstring_param\x18\x03 \x01(\tH\x00R\x0bstringParam\x12#\n\x0cdouble_par'
    b'am\x18\x04 \x01(\x01H\x00R\x0bdoubleParam\x12#\n\x0cuint64_param\x18\x05 \x01(\x04H\x00R\x0buint64ParamB\x12\n\x10'
    b'parameter_choice"\xc3\x02\n\x13InferTensorContents\x12#\n\rbool_contents\x18\x01 \x03(\x08R'
    b'\x0cboolContents\x12!\n\x0cint_contents\x18\x02 \x03(\x05R\x0bintContents\x12%\n\x0eint64_conten'
    b"ts\x18\x03 \x03(\x03R\rint64Contents\x12#\n\ruint_contents\x18\x04 \x03(\rR\x0cuintContents\x12'\n\x0f"
    b'uint64_contents\x18\x05 \x03(\x04R\x0euint64Contents\x12#\n\rfp32_contents\x18\x06 \x03(\x02R\x0cfp'
    b'32Contents\x12#\n\rfp64_contents\x18\x07 \x03(\x01R\x0cfp64Contents\x12%\n\x0ebytes_content'
    b's\x18\x08 \x03(\x0cR\rbytesContents"\x9d\x08\n\x11ModelInferRequest\x12\x1d\n\nmodel_name\x18\x01 \x01(\t'
    b'R\tmodelName\x12#\n\rmodel_version\x18\x02 \x01(\tR\x0cmodelVersion\x12\x0e\n\x02id\x18\x03 \x01(\tR\x02id'
    b'\x12L\n\nparameters\x18\x04 \x03(\x0b2,.inference.ModelInferRequest.ParametersEnt'
    b'ryR\nparameters\x12E\n\x06inputs\x18\x05 \x03(\x0b2-.inference.ModelInferRequest.Inf'
    b'erInputTensorR\x06inputs\x12Q\n\x07outputs\x18\x06 \x03(\x0b27.inference.ModelInferReq'
    b'uest.InferRequestedOutputTensorR\x07outputs\x12,\n\x12raw_input_contents\x18\x07'
    b' \x03(\x0cR\x10rawInputContents\x1a\xcd\x02\n\x10InferInputTensor\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12'
    b'\x1a\n\x08datatype\x18\x02 \x01(\tR\x08datatype\x12\x14\n\x05shape\x18\x03 \x03(\x03R\x05shape\x12]\n\nparameters\x18'
    b'\x04 \x03(\x0b2=.inference.ModelInferRequest.InferInputTensor.ParametersE'
    b'ntryR\nparameters\x12:\n\x08contents\x18\x05 \x01(\x0b2\x1e.inference.InferTensorConten'
    b'tsR\x08contents\x1aX\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12/\n\x05value\x18\x02 \x01(\x0b'
    b'2\x19.inference.InferParameterR\x05value:\x028\x01\x1a\xf3\x01\n\x1aInferRequestedOutputT'
    b'ensor\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12g\n\nparameters\x18\x02 \x03(\x0b2G.inference.ModelI'
    b'nferRequest.InferRequestedOutputTensor.ParametersEntryR\nparamete'
    b'rs\x1aX\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.inferen'
    b'ce.InferParameterR\x05value:\x028\x01\x1aX\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03ke'
    b'y\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.inference.InferParameterR\x05value:\x028\x01"\xdf\x05\n\x12Model'
    b'InferResponse\x12\x1d\n\nmodel_name\x18\x01 \x01(\tR\tmodelName\x12#\n\rmodel_version\x18\x02 '
    b'\x01(\tR\x0cmodelVersion\x12\x0e\n\x02id\x18\x03 \x01(\tR\x02id\x12M\n\nparameters\x18\x04 \x03(\x0b2-.inferenc'
    b'e.ModelInferResponse.ParametersEntryR\nparameters\x12I\n\x07outputs\x18\x05 \x03('
    b'\x0b2/.inference.ModelInferResponse.InferOutputTensorR\x07outputs\x12.\n\x13r'
    b'aw_output_contents\x18\x06 \x03(\x0cR\x11rawOutputContents\x1a\xd0\x02\n\x11InferOutputTenso'
    b'r\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x1a\n\x08datatype\x18\x02 \x01(\tR\x08datatype\x12\x14\n\x05shape\x18\x03 \x03(\x03'
    b'R\x05shape\x12_\n\nparameters\x18\x04 \x03(\x0b2?.inference.ModelInferResponse.Infer'
    b'OutputTensor.ParametersEntryR\nparameters\x12:\n\x08contents\x18\x05 \x01(\x0b2\x1e.inf'
    b'erence.InferTensorContentsR\x08contents\x1aX\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01'
    b' \x01(\tR\x03key\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.inference.InferParameterR\x05value:\x028\x01\x1aX'
    b'\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.inference.I'
    b'nferParameterR\x05value:\x028\x01"\x85\x01\n\x18ModelStreamInferResponse\x12#\n\rerror_m'
    b'essage\x18\x01 \x01(\tR\x0cerrorMessage\x12D\n\x0einfer_response\x18\x02 \x01(\x0b2\x1d.inference.M'
    b'odelInferResponseR\rinferResponse"B\n\x12ModelConfigRequest\x12\x12\n\x04name\x18\x01'
    b' \x01(\tR\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07version"E\n\x13ModelConfigResponse\x12.\n\x06c'
    b'onfig\x18\x01 \x01(\x0b2\x16.inference.ModelConfigR\x06config"F\n\x16ModelStatisticsRe'
    b'quest\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07version"9\n\x11Statistic'
    b'Duration\x12\x14\n\x05count\x18\x01 \x01(\x04R\x05count\x12\x0e\n\x02ns\x18\x02 \x01(\x04R\x02ns"\xf2\x03\n\x0fInferStatisti'
    b'cs\x126\n\x07success\x18\x01 \x01(\x0b2\x1c.inference.StatisticDurationR\x07success\x120\n\x04fa'
    b'il\x18\x02 \x01(\x0b2\x1c.inference.StatisticDurationR\x04fail\x122\n\x05queue\x18\x03 \x01(\x0b2\x1c.in'
    b'ference.StatisticDurationR\x05queue\x12A\n\rcompute_input\x18\x04 \x01(\x0b2\x1c.infere'
    b'nce.StatisticDurationR\x0ccomputeInput\x12A\n\rcompute_infer\x18\x05 \x01(\x0b2\x1c.inf'
    b'erence.StatisticDurationR\x0ccomputeInfer\x12C\n\x0ecompute_output\x18\x06 \x01(\x0b2\x1c'
    b'.inference.StatisticDurationR\rcomputeOutput\x129\n\tcache_hit\x18\x07 \x01(\x0b2\x1c'
    b'.inference.StatisticDurationR\x08cacheHit\x12;\n\ncache_miss\x18\x08 \x01(\x0b2\x1c.inf'
    b'erence.StatisticDurationR\tcacheMiss"\x86\x03\n\x17InferResponseStatistics\x12'
    b'A\n\rcompute_infer\x18\x01 \x01(\x0b2\x1c.inference.StatisticDurationR\x0ccomputeInf'
    b'er\x12C\n\x0ecompute_output\x18\x02 \x01(\x0b2\x1c.inference.StatisticDurationR\rcomput'
    b'eOutput\x126\n\x07success\x18\x03 \x01(\x0b2\x1c.inference.StatisticDurationR\x07success\x12'
    b'0\n\x04fail\x18\x04 \x01(\x0b2\x1c.inference.StatisticDurationR\x04fail\x12C\n\x0eempty_respo'
    b'nse\x18\x05 \x01(\x0b2\x1c.inference.StatisticDurationR\remptyResponse\x124\n\x06cancel'
    b'\x18\x06 \x01(\x0b2\x1c.inference.StatisticDurationR\x06cancel"\x80\x02\n\x14InferBatchStati'
    b'stics\x12\x1d\n\nbatch_size\x18\x01 \x01(\x04R\tbatchSize\x12A\n\rcompute_input\x18\x02 \x01(\x0b2\x1c.in'
    b'ference.StatisticDurationR\x0ccomputeInput\x12A\n\rcompute_infer\x18\x03 \x01(\x0b2\x1c'
    b'.inference.StatisticDurationR\x0ccomputeInfer\x12C\n\x0ecompute_output\x18\x04 \x01'
    b'(\x0b2\x1c.inference.StatisticDurationR\rcomputeOutput"N\n\x0bMemoryUsage\x12\x12'
    b'\n\x04type\x18\x01 \x01(\tR\x04type\x12\x0e\n\x02id\x18\x02 \x01(\x03R\x02id\x12\x1b\n\tbyte_size\x18\x03 \x01(\x04R\x08byteSize"'
    b'\xb6\x04\n\x0fModelStatistics\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07versio'
    b"n\x12%\n\x0elast_inference\x18\x03 \x01(\x04R\rlastInference\x12'\n\x0finference_count\x18\x04 \x01("
    b"\x04R\x0einferenceCount\x12'\n\x0fexecution_count\x18\x05 \x01(\x04R\x0eexecutionCount\x12C\n\x0fin"
    b'ference_stats\x18\x06 \x01(\x0b2\x1a.inference.InferStatisticsR\x0einferenceStats\x12'
    b'@\n\x0bbatch_stats\x18\x07 \x03(\x0b2\x1f.inference.InferBatchStatisticsR\nbatchStat'
    b's\x129\n\x0cmemory_usage\x18\x08 \x03(\x0b2\x16.inference.MemoryUsageR\x0bmemoryUsage\x12T\n\x0e'
    b'response_stats\x18\t \x03(\x0b2-.inference.ModelStatistics.ResponseStatsEn'
    b'tryR\rresponseStats\x1ad\n\x12ResponseStatsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x128\n\x05va'
    b'lue\x18\x02 \x01(\x0b2".inference.InferResponseStatisticsR\x05value:\x028\x01"V\n\x17Mode'
    b'lStatisticsResponse\x12;\n\x0bmodel_stats\x18\x01 \x03(\x0b2\x1a.inference.ModelStatis'
    b'ticsR\nmodelStats"\xba\x01\n\x18ModelRepositoryParameter\x12\x1f\n\nbool_param\x18\x01 \x01('
    b'\x08H\x00R\tboolParam\x12!\n\x0bint64_param\x18\x02 \x01(\x03H\x00R\nint64Param\x12#\n\x0cstring_para'
    b'm\x18\x03 \x01(\tH\x00R\x0bstringParam\x12!\n\x0bbytes_param\x18\x04 \x01(\x0cH\x00R\nbytesParamB\x12\n\x10par'
    b'ameter_choice"W\n\x16RepositoryIndexRequest\x12\'\n\x0frepository_name\x18\x01 \x01(\t'
    b'R\x0erepositoryName\x12\x14\n\x05ready\x18\x02 \x01(\x08R\x05ready"\xca\x01\n\x17RepositoryIndexRespon'
    b'se\x12E\n\x06models\x18\x01 \x03(\x0b2-.inference.RepositoryIndexResponse.ModelInde'
    b'xR\x06models\x1ah\n\nModelIndex\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x18\n\x07version\x18\x02 \x01(\tR\x07ve'
    b'rsion\x12\x14\n\x05state\x18\x03 \x01(\tR\x05state\x12\x16\n\x06reason\x18\x04 \x01(\tR\x06reason"\x9f\x02\n\x1aReposito'
    b"ryModelLoadRequest\x12'\n\x0frepository_name\x18\x01 \x01(\tR\x0erepositoryName\x12\x1d\n\nm"
    b'odel_name\x18\x02 \x01(\tR\tmodelName\x12U\n\nparameters\x18\x03 \x03(\x0b25.inference.Repos'
    b'itoryModelLoadRequest.ParametersEntryR\nparameters\x1ab\n\x0fParametersE'
    b'ntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x129\n\x05value\x18\x02 \x01(\x0b2#.inference.ModelRepositor'
    b'yParameterR\x05value:\x028\x01"\x1d\n\x1bRepositoryModelLoadResponse"\xa3\x02\n\x1cReposit'
    b"oryModelUnloadRequest\x12'\n\x0frepository_name\x18\x01 \x01(\tR\x0erepositoryName\x12\x1d"
    b'\n\nmodel_name\x18\x02 \x01(\tR\tmodelName\x12W\n\nparameters\x18\x03 \x03(\x0b27.inference.Re'
    b'positoryModelUnloadRequest.ParametersEntryR\nparameters\x1ab\n\x0fParame'
    b'tersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x129\n\x05value\x18\x02 \x01(\x0b2#.inference.ModelRepo'
    b'sitoryParameterR\x05value:\x028\x01"\x1f\n\x1dRepositoryModelUnloadResponse"5\n\x1fS'
    b'ystemSharedMemoryStatusRequest\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name"\xd7\x02\n SystemSha'
    b'redMemoryStatusResponse\x12R\n\x07regions\x18\x01 \x03(\x0b28.inference.SystemShare'
    b'dMemoryStatusResponse.RegionsEntryR\x07regions\x1ai\n\x0cRegionStatus\x12\x12\n\x04n'
    b'ame\x18\x01 \x01(\tR\x04name\x12\x10\n\x03key\x18\x02 \x01(\tR\x03key\x12\x16\n\x06offset\x18\x03 \x01(\x04R\x06offset\x12\x1b\n\tbyt'
    b'e_size\x18\x04 \x01(\x04R\x08byteSize\x1at\n\x0cRegionsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12N\n\x05valu'
    b'e\x18\x02 \x01(\x0b28.inference.SystemSharedMemoryStatusResponse.RegionStatu'
    b'sR\x05value:\x028\x01"~\n!SystemSharedMemoryRegisterRequest\x12\x12\n\x04name\x18\x01 \x01(\tR'
    b'\x04name\x12\x10\n\x03key\x18\x02 \x01(\tR\x03key\x12\x16\n\x06offset\x18\x03 \x01(\x04R\x06offset\x12\x1b\n\tbyte_size\x18\x04 \x01'
    b'(\x04R\x08byteSize"$\n"SystemSharedMemoryRegisterResponse"9\n#SystemShar'
    b'edMemoryUnregisterRequest\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name"&\n$SystemSharedMem'
    b'oryUnregisterResponse"3\n\x1dCudaSharedMemoryStatusRequest\x12\x12\n\x04name\x18\x01'
    b' \x01(\tR\x04name"\xc4\x02\n\x1eCudaSharedMemoryStatusResponse\x12P\n\x07regions\x18\x01 \x03(\x0b26'
    b'.inference.CudaSharedMemoryStatusResponse.RegionsEntryR\x07regions\x1a'
    b'\\\n\x0cRegionStatus\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x1b\n\tdevice_id\x18\x02 \x01(\x04R\x08deviceId'
    b'\x12\x1b\n\tbyte_size\x18\x03 \x01(\x04R\x08byteSize\x1ar\n\x0cRegionsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12'
    b'L\n\x05value\x18\x02 \x01(\x0b26.inference.CudaSharedMemoryStatusResponse.Region'
    b'StatusR\x05value:\x028\x01"\x8e\x01\n\x1fCudaSharedMemoryRegisterRequest\x12\x12\n\x04name\x18\x01 '
    b'\x01(\tR\x04name\x12\x1d\n\nraw_handle\x18\x02 \x01(\x0cR\trawHandle\x12\x1b\n\tdevice_id\x18\x03 \x01(\x03R\x08dev'
    b'iceId\x12\x1b\n\tbyte_size\x18\x04 \x01(\x04R\x08byteSize""\n CudaSharedMemoryRegisterRe'
    b'sponse"7\n!CudaSharedMemoryUnregisterRequest\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name"'
    b'$\n"CudaSharedMemoryUnregisterResponse"\x8e\x02\n\x13TraceSettingRequest\x12H\n'
    b'\x08settings\x18\x01 \x03(\x0b2,.inference.TraceSettingRequest.SettingsEntryR\x08s'
    b'ettings\x12\x1d\n\nmodel_name\x18\x02 \x01(\tR\tmodelName\x1a$\n\x0cSettingValue\x12\x14\n\x05value\x18'
    b'\x01 \x03(\tR\x05value\x1ah\n\rSettingsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12A\n\x05value\x18\x02 \x01(\x0b2+'
    b'.inference.TraceSettingRequest.SettingValueR\x05value:\x028\x01"\xf2\x01\n\x14Trace'
    b'SettingResponse\x12I\n\x08settings\x18\x01 \x03(\x0b2-.inference.TraceSettingRespon'
    b'se.SettingsEntryR\x08settings\x1a$\n\x0cSettingValue\x12\x14\n\x05value\x18\x01 \x03(\tR\x05value'
    b'\x1ai\n\rSettingsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12B\n\x05value\x18\x02 \x01(\x0b2,.inference.T'
    b'raceSettingResponse.SettingValueR\x05value:\x028\x01"\xd6\x02\n\x12LogSettingsReque'
    b'st\x12G\n\x08settings\x18\x01 \x03(\x0b2+.inference.LogSettingsRequest.SettingsEntr'
    b'yR\x08settings\x1a\x8d\x01\n\x0cSettingValue\x12\x1f\n\nbool_param\x18\x01 \x01(\x08H\x00R\tboolParam\x12#\n'
    b'\x0cuint32_param\x18\x02 \x01(\rH\x00R\x0buint32Param\x12#\n\x0cstring_param\x18\x03 \x01(\tH\x00R\x0bstri'
    b'ngParamB\x12\n\x10parameter_choice\x1ag\n\rSettingsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12@'
    b'\n\x05value\x18\x02 \x01(\x0b2*.inference.LogSettingsRequest.SettingValueR\x05value'
    b':\x028\x01"\xd9\x02\n\x13LogSettingsResponse\x12H\n\x08settings\x18\x01 \x03(\x0b2,.inference.LogSe'
    b'ttingsResponse.SettingsEntryR\x08settings\x1a\x8d\x01\n\x0cSettingValue\x12\x1f\n\nbool_'
    b'param\x18\x01 \x01(\x08H\x00R\tboolParam\x12#\n\x0cuint32_param\x18\x02 \x01(\rH\x00R\x0buint32Param\x12#\n'
    b'\x0cstring_param\x18\x03 \x01(\tH\x00R\x0bstringParamB\x12\n\x10parameter_choice\x1ah\n\rSettin'
    b'gsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12A\n\x05value\x18\x02 \x01(\x0b2+.inference.LogSettings'
    b'Response.SettingValueR\x05value:\x028\x01"\xc0\x01\n\x10ModelRateLimiter\x12B\n\tresourc'
    b'es\x18\x01 \x03(\x0b2$.inference.ModelRateLimiter.ResourceR\tresources\x12\x1a\n\x08pri'
    b'ority\x18\x02 \x01(\rR\x08priority\x1aL\n\x08Resource\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x16\n\x06global\x18'
    b'\x02 \x01(\x08R\x06global\x12\x14\n\x05count\x18\x03 \x01(\rR\x05count"\xed\x04\n\x12ModelInstanceGroup\x12\x12\n\x04na'
    b'me\x18\x01 \x01(\tR\x04name\x126\n\x04kind\x18\x04 \x01(\x0e2".inference.ModelInstanceGroup.Kind'
    b'R\x04kind\x12\x14\n\x05count\x18\x02 \x01(\x05R\x05count\x12>\n\x0crate_limiter\x18\x06 \x01(\x0b2\x1b.inference.M'
    b'odelRateLimiterR\x0brateLimiter\x12\x12\n\x04gpus\x18\x03 \x03(\x05R\x04gpus\x12Z\n\x11secondary_de'
    b'vices\x18\x08 \x03(\x0b2-.inference.ModelInstanceGroup.SecondaryDeviceR\x10seco'
    b'ndaryDevices\x12\x18\n\x07profile\x18\x05 \x03(\tR\x07profile\x12\x18\n\x07passive\x18\x07 \x01(\x08R\x07passive'
    b'\x12\x1f\n\x0bhost_policy\x18\t \x01(\tR\nhostPolicy\x1a\xac\x01\n\x0fSecondaryDevice\x12U\n\x04kind\x18\x01 '
    b'\x01(\x0e2A.inference.ModelInstanceGroup.SecondaryDevice.SecondaryDevi'
    b'ceKindR\x04kind\x12\x1b\n\tdevice_id\x18\x02 \x01(\x03R\x08deviceId"%\n\x13SecondaryDeviceKind'
    b'\x12\x0e\n\nKIND_NVDLA\x10\x00"A\n\x04Kind\x12\r\n\tKIND_AUTO\x10\x00\x12\x0c\n\x08KIND_GPU\x10\x01\x12\x0c\n\x08KIND_CP'
    b'U\x10\x02\x12\x0e\n\nKIND_MODEL\x10\x03"*\n\x12ModelTensorReshape\x12\x14\n\x05shape\x18\x01 \x03(\x03R\x05shape"'
    b'\xba\x03\n\nModelInput\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x120\n\tdata_type\x18\x02 \x01(\x0e2\x13.inferenc'
    b'e.DataTypeR\x08dataType\x124\n\x06format\x18\x03 \x01(\x0e2\x1c.inference.ModelInput.Form'
    b'atR\x06format\x12\x12\n\x04dims\x18\x04 \x03(\x03R\x04dims\x127\n\x07reshape\x18\x05 \x01(\x0b2\x1d.inference.Mode'
    b'lTensorReshapeR\x07reshape\x12&\n\x0fis_shape_tensor\x18\x06 \x01(\x08R\risShapeTensor\x12'
    b',\n\x12allow_ragged_batch\x18\x07 \x01(\x08R\x10allowRaggedBatch\x12\x1a\n\x08optional\x18\x08 \x01(\x08R'
    b'\x08optional\x124\n\x17is_non_linear_format_io\x18\t \x01(\x08R\x13isNonLinearFormatIo"'
    b';\n\x06Format\x12\x0f\n\x0bFORMAT_NONE\x10\x00\x12\x0f\n\x0bFORMAT_NHWC\x10\x01\x12\x0f\n\x0bFORMAT_NCHW\x10\x02"\xa5\x02\n'
    b'\x0bModelOutput\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x120\n\tdata_type\x18\x02 \x01(\x0e2\x13.inference.'
    b'DataTypeR\x08dataType\x12\x12\n\x04dims\x18\x03 \x03(\x03R\x04dims\x127\n\x07reshape\x18\x05 \x01(\x0b2\x1d.infere'
    b'nce.ModelTensorReshapeR\x07reshape\x12%\n\x0elabel_filename\x18\x04 \x01(\tR\rlabelFi'
    b'lename\x12&\n\x0fis_shape_tensor\x18\x06 \x01(\x08R\risShapeTensor\x124\n\x17is_non_linear_'
    b'format_io\x18\x07 \x01(\x08R\x13isNonLinearFormatIo"\x82\x03\n\nBatchInput\x12.\n\x04kind\x18\x01 \x01('
    b'\x0e2\x1a.inference.BatchInput.KindR\x04kind\x12\x1f\n\x0btarget_name\x18\x02 \x03(\tR\ntarget'
    b'Name\x120\n\tdata_type\x18\x03 \x01(\x0e2\x13.inference.DataTypeR\x08dataType\x12!\n\x0csource'
    b'_input\x18\x04 \x03(\tR\x0bsourceInput"\xcd\x01\n\x04Kind\x12\x17\n\x13BATCH_ELEMENT_COUNT\x10\x00\x12#\n\x1fB'
    b'ATCH_ACCUMULATED_ELEMENT_COUNT\x10\x01\x12-\n)BATCH_ACCUMULATED_ELEMENT_CO'
    b'UNT_WITH_ZERO\x10\x02\x12$\n BATCH_MAX_ELEMENT_COUNT_AS_SHAPE\x10\x03\x12\x14\n\x10BATCH_I'
    b'TEM_SHAPE\x10\x04\x12\x1c\n\x18BATCH_ITEM_SHAPE_FLATTEN\x10\x05"\xae\x01\n\x0bBatchOutput\x12\x1f\n\x0btar'
    b'get_name\x18\x01 \x03(\tR\ntargetName\x12/\n\x04kind\x18\x02 \x01(\x0e2\x1b.inference.BatchOutput'
    b'.KindR\x04kind\x12!\n\x0csource_input\x18\x03 \x03(\tR\x0bsourceInput"*\n\x04Kind\x12"\n\x1eBATCH_'
    b'SCATTER_WITH_INPUT_SHAPE\x10\x00"\xbe\x02\n\x12ModelVersionPolicy\x12>\n\x06latest\x18\x01 \x01('
    b'\x0b2$.inference.ModelVersionPolicy.LatestH\x00R\x06latest\x125\n\x03all\x18\x02 \x01(\x0b2!'
    b'.inference.ModelVersionPolicy.AllH\x00R\x03all\x12D\n\x08specific\x18\x03 \x01(\x0b2&.inf'
    b'erence.ModelVersionPolicy.SpecificH\x00R\x08specific\x1a+\n\x06Latest\x12!\n\x0cnum_'
    b'versions\x18\x01 \x01(\rR\x0bnumVersions\x1a\x05\n\x03All\x1a&\n\x08Specific\x12\x1a\n\x08versions\x18\x01 \x03(\x03'
    b'R\x08versionsB\x0f\n\rpolicy_choice"\xe6\x10\n\x17ModelOptimizationPolicy\x12>\n\x05graph'
    b'\x18\x01 \x01(\x0b2(.inference.ModelOptimizationPolicy.GraphR\x05graph\x12L\n\x08prior'
    b'ity\x18\x02 \x01(\x0e20.inference.ModelOptimizationPolicy.ModelPriorityR\x08pri'
    b"ority\x12;\n\x04cuda\x18\x03 \x01(\x0b2'.inference.ModelOptimizationPolicy.CudaR\x04cu"
    b'da\x12o\n\x16execution_accelerators\x18\x04 \x01(\x0b28.inference.ModelOptimization'
    b'Policy.ExecutionAcceleratorsR\x15executionAccelerators\x12e\n\x13input_pin'
    b'ned_memory\x18\x05 \x01(\x0b25.inference.ModelOptimizationPolicy.PinnedMemor'
    b'yBufferR\x11inputPinnedMemory\x12g\n\x14output_pinned_memory\x18\x06 \x01(\x0b25.infer'
    b'ence.ModelOptimizationPolicy.PinnedMemoryBufferR\x12outputPinnedMem'
    b'ory\x12C\n\x1egather_kernel_buffer_threshold\x18\x07 \x01(\rR\x1bgatherKernelBufferT'
    b'hreshold\x12%\n\x0eeager_batching\x18\x08 \x01(\x08R\reagerBatching\x1a\x1d\n\x05Graph\x12\x14\n\x05leve'
    b'l\x18\x01 \x01(\x05R\x05level\x1a\xc1\x06\n\x04Cuda\x12\x16\n\x06graphs\x18\x01 \x01(\x08R\x06graphs\x12(\n\x10busy_wait_eve'
    b'nts\x18\x02 \x01(\x08R\x0ebusyWaitEvents\x12P\n\ngraph_spec\x18\x03 \x03(\x0b21.inference.ModelO'
    b'ptimizationPolicy.Cuda.GraphSpecR\tgraphSpec\x12,\n\x12output_copy_strea'
    b'm\x18\x04 \x01(\x08R\x10outputCopyStream\x1a\xf6\x04\n\tGraphSpec\x12\x1d\n\nbatch_size\x18\x01 \x01(\x05R\tbat'
    b'chSize\x12R\n\x05input\x18\x02 \x03(\x0b2<.inference.ModelOptimizationPolicy.Cuda.G'
    b'raphSpec.InputEntryR\x05input\x12h\n\x11graph_lower_bound\x18\x03 \x01(\x0b2<.inferenc'
    b'e.ModelOptimizationPolicy.Cuda.GraphSpec.LowerBoundR\x0fgraphLowerB'
    b'ound\x1a\x19\n\x05Shape\x12\x10\n\x03dim\x18\x01 \x03(\x03R\x03dim\x1a\xfd\x01\n\nLowerBound\x12\x1d\n\nbatch_size\x18\x01 \x01'
    b'(\x05R\tbatchSize\x12]\n\x05input\x18\x02 \x03(\x0b2G.inference.ModelOptimizationPolicy'
    b'.Cuda.GraphSpec.LowerBound.InputEntryR\x05input\x1aq\n\nInputEntry\x12\x10\n\x03ke'
    b'y\x18\x01 \x01(\tR\x03key\x12M\n\x05value\x18\x02 \x01(\x0b27.inference.ModelOptimizationPolicy.'
    b'Cuda.GraphSpec.ShapeR\x05value:\x028\x01\x1aq\n\nInputEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12'
    b'M\n\x05value\x18\x02 \x01(\x0b27.inference.ModelOptimizationPolicy.Cuda.GraphSpe'
    b'c.ShapeR\x05value:\x028\x01\x1a\xf6\x03\n\x15ExecutionAccelerators\x12\x80\x01\n\x19gpu_execution_a'
    b'ccelerator\x18\x01 \x03(\x0b2D.inference.ModelOptimizationPolicy.ExecutionAc'
    b'celerators.AcceleratorR\x17gpuExecutionAccelerator\x12\x80\x01\n\x19cpu_executio'
    b'n_accelerator\x18\x02 \x03(\x0b2D.inference.ModelOptimizationPolicy.Executio'
    b'nAccelerators.AcceleratorR\x17cpuExecutionAccelerator\x1a\xd6\x01\n\x0bAccelerat'
    b'or\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12t\n\nparameters\x18\x02 \x03(\x0b2T.inference.ModelOpti'
    b'mizationPolicy.ExecutionAccelerators.Accelerator.ParametersEntry'
    b'R\nparameters\x1a=\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12\x14\n\x05value\x18\x02 \x01(\t'
    b'R\x05value:\x028\x01\x1a,\n\x12PinnedMemoryBuffer\x12\x16\n\x06enable\x18\x01 \x01(\x08R\x06enable"I\n\rMod'
    b'elPriority\x12\x14\n\x10PRIORITY_DEFAULT\x10\x00\x12\x10\n\x0cPRIORITY_MAX\x10\x01\x12\x10\n\x0cPRIORITY_M'
    b'IN\x10\x02"\xaa\x02\n\x10ModelQueuePolicy\x12P\n\x0etimeout_action\x18\x01 \x01(\x0e2).inference.Mo'
    b'delQueuePolicy.TimeoutActionR\rtimeoutAction\x12@\n\x1cdefault_timeout_m'
    b'icroseconds\x18\x02 \x01(\x04R\x1adefaultTimeoutMicroseconds\x124\n\x16allow_timeout_o'
    b'verride\x18\x03 \x01(\x08R\x14allowTimeoutOverride\x12$\n\x0emax_queue_size\x18\x04 \x01(\rR\x0cmax'
    b'QueueSize"&\n\rTimeoutAction\x12\n\n\x06REJECT\x10\x00\x12\t\n\x05DELAY\x10\x01"\xb7\x04\n\x14ModelDynam'
    b'icBatching\x120\n\x14preferred_batch_size\x18\x01 \x03(\x05R\x12preferredBatchSize\x12?\n\x1c'
    b'max_queue_delay_microseconds\x18\x02 \x01(\x04R\x19maxQueueDelayMicroseconds\x12+\n'
    b"\x11preserve_ordering\x18\x03 \x01(\x08R\x10preserveOrdering\x12'\n\x0fpriority_levels\x18\x04 "
    b'\x01(\x04R\x0epriorityLevels\x124\n\x16default_priority_level\x18\x05 \x01(\x04R\x14defaultPrio'
    b'rityLevel\x12M\n\x14default_queue_policy\x18\x06 \x01(\x0b2\x1b.inference.ModelQueuePo'
    b'licyR\x12defaultQueuePolicy\x12l\n\x15priority_queue_policy\x18\x07 \x03(\x0b28.infere'
    b'nce.ModelDynamicBatching.PriorityQueuePolicyEntryR\x13priorityQueue'
    b'Policy\x1ac\n\x18PriorityQueuePolicyEntry\x12\x10\n\x03key\x18\x01 \x01(\x04R\x03key\x121\n\x05value\x18\x02 '
    b'\x01(\x0b2\x1b.inference.ModelQueuePolicyR\x05value:\x028\x01"\xab\x0e\n\x15ModelSequenceBat'
    b'ching\x12I\n\x06direct\x18\x03 \x01(\x0b2/.inference.ModelSequenceBatching.Strategy'
    b'DirectH\x00R\x06direct\x12I\n\x06oldest\x18\x04 \x01(\x0b2/.inference.ModelSequenceBatchi'
    b'ng.StrategyOldestH\x00R\x06oldest\x12C\n\x1emax_sequence_idle_microseconds\x18\x01 '
    b'\x01(\x04R\x1bmaxSequenceIdleMicroseconds\x12R\n\rcontrol_input\x18\x02 \x03(\x0b2-.infere'
    b'nce.ModelSequenceBatching.ControlInputR\x0ccontrolInput\x12<\n\x05state\x18\x05 '
    b'\x03(\x0b2&.inference.ModelSequenceBatching.StateR\x05state\x12-\n\x12iterative_'
    b'sequence\x18\x06 \x01(\x08R\x11iterativeSequence\x1a\xef\x02\n\x07Control\x12A\n\x04kind\x18\x01 \x01(\x0e2-.in'
    b'ference.ModelSequenceBatching.Control.KindR\x04kind\x12(\n\x10int32_false_'
    b'true\x18\x02 \x03(\x05R\x0eint32FalseTrue\x12&\n\x0ffp32_false_true\x18\x03 \x03(\x02R\rfp32FalseTr'
    b'ue\x12&\n\x0fbool_false_true\x18\x05 \x03(\x08R\rboolFalseTrue\x120\n\tdata_type\x18\x04 \x01(\x0e2\x13.'
    b'inference.DataTypeR\x08dataType"u\n\x04Kind\x12\x1a\n\x16CONTROL_SEQUENCE_START\x10\x00'
    b'\x12\x1a\n\x16CONTROL_SEQUENCE_READY\x10\x01\x12\x18\n\x14CONTROL_SEQUENCE_END\x10\x02\x12\x1b\n\x17CONTRO'
    b'L_SEQUENCE_CORRID\x10\x03\x1af\n\x0cControlInput\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12B\n\x07contr'
    b'ol\x18\x02 \x03(\x0b2(.inference.ModelSequenceBatching.ControlR\x07control\x1a\xb4\x01\n\x0c'
    b'InitialState\x120\n\tdata_type\x18\x01 \x01(\x0e2\x13.inference.DataTypeR\x08dataType\x12\x12'
    b'\n\x04dims\x18\x02 \x03(\x03R\x04dims\x12\x1d\n\tzero_data\x18\x03 \x01(\x08H\x00R\x08zeroData\x12\x1d\n\tdata_file\x18\x04'
    b' \x01(\tH\x00R\x08dataFile\x12\x12\n\x04name\x18\x05 \x01(\tR\x04nameB\x0c\n\nstate_data\x1a\xd8\x02\n\x05State\x12\x1d\n\n'
    b'input_name\x18\x01 \x01(\tR\tinputName\x12\x1f\n\x0boutput_name\x18\x02 \x01(\tR\noutputName\x120\n\t'
    b'data_type\x18\x03 \x01(\x0e2\x13.inference.DataTypeR\x08dataType\x12\x12\n\x04dims\x18\x04 \x03(\x03R\x04di'
    b'ms\x12R\n\rinitial_state\x18\x05 \x03(\x0b2-.inference.ModelSequenceBatching.Init'
    b'ialStateR\x0cinitialState\x12E\n use_same_buffer_for_input_output\x18\x06 \x01(\x08'
    b'R\x1buseSameBufferForInputOutput\x12.\n\x13use_growable_memory\x18\x07 \x01(\x08R\x11useG'
    b'rowableMemory\x1a\x8b\x01\n\x0eStrategyDirect\x12?\n\x1cmax_queue_delay_microseconds'
    b'\x18\x01 \x01(\x04R\x19maxQueueDelayMicroseconds\x128\n\x18minimum_slot_utilization\x18\x02 '
    b'\x01(\x02R\x16minimumSlotUtilization\x1a\xe8\x01\n\x0eStrategyOldest\x126\n\x17max_candidate_'
    b'sequences\x18\x01 \x01(\x05R\x15maxCandidateSequences\x120\n\x14preferred_batch_size\x18\x02'
    b' \x03(\x05R\x12preferredBatchSize\x12?\n\x1cmax_queue_delay_microseconds\x18\x03 \x01(\x04R\x19'
    b'maxQueueDelayMicroseconds\x12+\n\x11preserve_ordering\x18\x04 \x01(\x08R\x10preserveOr'
    b'deringB\x11\n\x0fstrategy_choice"\x86\x04\n\x0fModelEnsembling\x123\n\x04step\x18\x01 \x03(\x0b2\x1f.in'
    b'ference.ModelEnsembling.StepR\x04step\x122\n\x15max_inflight_requests\x18\x02 \x01('
    b'\rR\x13maxInflightRequests\x1a\x89\x03\n\x04Step\x12\x1d\n\nmodel_name\x18\x01 \x01(\tR\tmodelName\x12#'
    b'\n\rmodel_version\x18\x02 \x01(\x03R\x0cmodelVersion\x12J\n\tinput_map\x18\x03 \x03(\x0b2-.inferen'
    b'ce.ModelEnsembling.Step.InputMapEntryR\x08inputMap\x12M\n\noutput_map\x18\x04 '
    b"\x03(\x0b2..inference.ModelEnsembling.Step.OutputMapEntryR\toutputMap\x12'"
    b'\n\x0fmodel_namespace\x18\x05 \x01(\tR\x0emodelNamespace\x1a;\n\rInputMapEntry\x12\x10\n\x03key\x18'
    b'\x01 \x01(\tR\x03key\x12\x14\n\x05value\x18\x02 \x01(\tR\x05value:\x028\x01\x1a<\n\x0eOutputMapEntry\x12\x10\n\x03key\x18\x01 '
    b'\x01(\tR\x03key\x12\x14\n\x05value\x18\x02 \x01(\tR\x05value:\x028\x01"3\n\x0eModelParameter\x12!\n\x0cstring_v'
    b'alue\x18\x01 \x01(\tR\x0bstringValue"\xba\x03\n\x0bModelWarmup\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x1d\n\nb'
    b'atch_size\x18\x02 \x01(\rR\tbatchSize\x12:\n\x06inputs\x18\x03 \x03(\x0b2".inference.ModelWarm'
    b'up.InputsEntryR\x06inputs\x12\x14\n\x05count\x18\x04 \x01(\rR\x05count\x1a\xcc\x01\n\x05Input\x120\n\tdata_t'
    b'ype\x18\x01 \x01(\x0e2\x13.inference.DataTypeR\x08dataType\x12\x12\n\x04dims\x18\x02 \x03(\x03R\x04dims\x12\x1d\n\t'
    b'zero_data\x18\x03 \x01(\x08H\x00R\x08zeroData\x12!\n\x0brandom_data\x18\x04 \x01(\x08H\x00R\nrandomData\x12('
    b'\n\x0finput_data_file\x18\x05 \x01(\tH\x00R\rinputDataFileB\x11\n\x0finput_data_type\x1aW\n\x0bI'
    b'nputsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x122\n\x05value\x18\x02 \x01(\x0b2\x1c.inference.ModelWar'
    b'mup.InputR\x05value:\x028\x01"A\n\x0fModelOperations\x12.\n\x13op_library_filename\x18\x01'
    b' \x03(\tR\x11opLibraryFilename"6\n\x16ModelTransactionPolicy\x12\x1c\n\tdecoupled\x18\x01'
    b' \x01(\x08R\tdecoupled"\x8c\x02\n\x15ModelRepositoryAgents\x12>\n\x06agents\x18\x01 \x03(\x0b2&.infe'
    b'rence.ModelRepositoryAgents.AgentR\x06agents\x1a\xb2\x01\n\x05Agent\x12\x12\n\x04name\x18\x01 \x01('
    b'\tR\x04name\x12V\n\nparameters\x18\x02 \x03(\x0b26.inference.ModelRepositoryAgents.Ag'
    b'ent.ParametersEntryR\nparameters\x1a=\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR'
    b'\x03key\x12\x14\n\x05value\x18\x02 \x01(\tR\x05value:\x028\x01",\n\x12ModelResponseCache\x12\x16\n\x06enable\x18\x01'
    b' \x01(\x08R\x06enable"\xa6\x03\n\x0cModelMetrics\x12L\n\x0emetric_control\x18\x01 \x03(\x0b2%.inferenc'
    b'e.ModelMetrics.MetricControlR\rmetricControl\x1a\xc7\x02\n\rMetricControl\x12c\n'
    b'\x11metric_identifier\x18\x01 \x01(\x0b26.inference.ModelMetrics.MetricControl.'
    b'MetricIdentifierR\x10metricIdentifier\x12e\n\x11histogram_options\x18\x02 \x01(\x0b26.'
    b'inference.ModelMetrics.MetricControl.HistogramOptionsH\x00R\x10histogr'
    b'amOptions\x1a*\n\x10MetricIdentifier\x12\x16\n\x06family\x18\x01 \x01(\tR\x06family\x1a,\n\x10Histogr'
    b'amOptions\x12\x18\n\x07buckets\x18\x01 \x03(\x01R\x07bucketsB\x10\n\x0emetric_options"\xfc\r\n\x0bModelC'
    b'onfig\x12\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x1a\n\x08platform\x18\x02 \x01(\tR\x08platform\x12\x18\n\x07backend'
    b'\x18\x11 \x01(\tR\x07backend\x12\x18\n\x07runtime\x18\x19 \x01(\tR\x07runtime\x12D\n\x0eversion_policy\x18\x03 \x01('
    b'\x0b2\x1d.inference.ModelVersionPolicyR\rversionPolicy\x12$\n\x0emax_batch_siz'
    b'e\x18\x04 \x01(\x05R\x0cmaxBatchSize\x12+\n\x05input\x18\x05 \x03(\x0b2\x15.inference.ModelInputR\x05inp'
    b'ut\x12.\n\x06output\x18\x06 \x03(\x0b2\x16.inference.ModelOutputR\x06output\x126\n\x0bbatch_inpu'
    b't\x18\x14 \x03(\x0b2\x15.inference.BatchInputR\nbatchInput\x129\n\x0cbatch_output\x18\x15 \x03(\x0b'
    b'2\x16.inference.BatchOutputR\x0bbatchOutput\x12F\n\x0coptimization\x18\x0c \x01(\x0b2".in'
    b'ference.ModelOptimizationPolicyR\x0coptimization\x12L\n\x10dynamic_batchin'
    b'g\x18\x0b \x01(\x0b2\x1f.inference.ModelDynamicBatchingH\x00R\x0fdynamicBatching\x12O\n\x11s'
    b'equence_batching\x18\r \x01(\x0b2 .inference.ModelSequenceBatchingH\x00R\x10sequ'
    b'enceBatching\x12M\n\x13ensemble_scheduling\x18\x0f \x01(\x0b2\x1a.inference.ModelEnsem'
    b'blingH\x00R\x12ensembleScheduling\x12D\n\x0einstance_group\x18\x07 \x03(\x0b2\x1d.inference.'
    b'ModelInstanceGroupR\rinstanceGroup\x124\n\x16default_model_filename\x18\x08 \x01('
    b'\tR\x14defaultModelFilename\x12Z\n\x12cc_model_filenames\x18\t \x03(\x0b2,.inference.'
    b'ModelConfig.CcModelFilenamesEntryR\x10ccModelFilenames\x12G\n\x0bmetric_ta'
    b'gs\x18\n \x03(\x0b2&.inference.ModelConfig.MetricTagsEntryR\nmetricTags\x12F\n\n'
    b'parameters\x18\x0e \x03(\x0b2&.inference.ModelConfig.ParametersEntryR\nparame'
    b'ters\x129\n\x0cmodel_warmup\x18\x10 \x03(\x0b2\x16.inference.ModelWarmupR\x0bmodelWarmup\x12'
    b'E\n\x10model_operations\x18\x12 \x01(\x0b2\x1a.inference.ModelOperationsR\x0fmodelOper'
    b'ations\x12[\n\x18model_transaction_policy\x18\x13 \x01(\x0b2!.inference.ModelTransa'
    b'ctionPolicyR\x16modelTransactionPolicy\x12X\n\x17model_repository_agents\x18\x17'
    b' \x01(\x0b2 .inference.ModelRepositoryAgentsR\x15modelRepositoryAgents\x12D\n'
    b'\x0eresponse_cache\x18\x18 \x01(\x0b2\x1d.inference.ModelResponseCacheR\rresponseCa'
    b'che\x12<\n\rmodel_metrics\x18\x1a \x01(\x0b2\x17.inference.ModelMetricsR\x0cmodelMetric'
    b's\x1aC\n\x15CcModelFilenamesEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12\x14\n\x05value\x18\x02 \x01(\tR\x05val'
    b'ue:\x028\x01\x1a=\n\x0fMetricTagsEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12\x14\n\x05value\x18\x02 \x01(\tR\x05valu'
    b'e:\x028\x01\x1aX\n\x0fParametersEntry\x12\x10\n\x03key\x18\x01 \x01(\tR\x03key\x12/\n\x05value\x18\x02 \x01(\x0b2\x19.infe'
    b'rence.ModelParameterR\x05value:\x028\x01B\x13\n\x11scheduling_choice*\xfa\x01\n\x08DataTyp'
    b'e\x12\x10\n\x0cTYPE_INVALID\x10\x00\x12\r\n\tTYPE_BOOL\x10\x01\x12\x0e\n\nTYPE_UINT8\x10\x02\x12\x0f\n\x0bTYPE_UINT1'
    b'6\x10\x03\x12\x0f\n\x0bTYPE_UINT32\x10\x04\x12\x0f\n\x0bTYPE_UINT64\x10\x05\x12\r\n\tTYPE_INT8\x10\x06\x12\x0e\n\nTYPE_INT'
    b'16\x10\x07\x12\x0e\n\nTYPE_INT32\x10\x08\x12\x0e\n\nTYPE_INT64\x10\t\x12\r\n\tTYPE_FP16\x10\n\x12\r\n\tTYPE_FP32'
    b'\x10\x0b\x12\r\n\tTYPE_FP64\x10\x0c\x12\x0f\n\x0bTYPE_STRING\x10\r\x12\r\n\tTYPE_BF16\x10\x0e2\x8e\x0f\n\x14GRPCInfere'
    b'nceService\x12I\n\nServerLive\x12\x1c.inference.ServerLiveRequest\x1a\x1d.inferen'
    b'ce.ServerLiveResponse\x12L\n\x0bServerReady\x12\x1d.inference.ServerReadyRequ'
    b'est\x1a\x1e.inference.ServerReadyResponse\x12I\n\nModelReady\x12\x1c.inference.Mo'
    b'delReadyRequest\x1a\x1d.inference.ModelReadyResponse\x12U\n\x0eServerMetadata'
    b'\x12 .inference.ServerMetadataRequest\x1a!.inference.ServerMetadataRes'
    b'ponse\x12R\n\rModelMetadata\x12\x1f.inference.ModelMetadataRequest\x1a .infere'
    b'nce.ModelMetadataResponse\x12I\n\nModelInfer\x12\x1c.inference.ModelInferRe'
    b'quest\x1a\x1d.inference.ModelInferResponse\x12Y\n\x10ModelStreamInfer\x12\x1c.infer'
    b'ence.ModelInferRequest\x1a#.inference.ModelStreamInferResponse(\x010\x01\x12'
    b'L\n\x0bModelConfig\x12\x1d.inference.ModelConfigRequest\x1a\x1e.inference.ModelC'
    b'onfigResponse\x12X\n\x0fModelStatistics\x12!.inference.ModelStatisticsRequ'
    b'est\x1a".inference.ModelStatisticsResponse\x12X\n\x0fRepositoryIndex\x12!.inf'
    b'erence.RepositoryIndexRequest\x1a".inference.RepositoryIndexRespons'
    b'e\x12d\n\x13RepositoryModelLoad\x12%.inference.RepositoryModelLoadRequest\x1a'
    b'&.inference.RepositoryModelLoadResponse\x12j\n\x15RepositoryModelUnload'
    b"\x12'.inference.RepositoryModelUnloadRequest\x1a(.inference.Repository"
    b'ModelUnloadResponse\x12s\n\x18SystemSharedMemoryStatus\x12*.inference.Syst'
    b'emSharedMemoryStatusRequest\x1a+.inference.SystemSharedMemoryStatus'
    b'Response\x12y\n\x1aSystemSharedMemoryRegister\x12,.inference.SystemSharedM'
    b'emoryRegisterRequest\x1a-.inference.SystemSharedMemoryRegisterRespo'
    b'nse\x12\x7f\n\x1cSystemSharedMemoryUnregister\x12..inference.SystemSharedMemo'
    b'ryUnregisterRequest\x1a/.inference.SystemSharedMemoryUnregisterResp'
    b'onse\x12m\n\x16CudaSharedMemoryStatus\x12(.inference.CudaSharedMemoryStatu'
    b'sRequest\x1a).inference.CudaSharedMemoryStatusResponse\x12s\n\x18CudaShare'
    b'dMemoryRegister\x12*.inference.CudaSharedMemoryRegisterRequest\x1a+.in'
    b'ference.CudaSharedMemoryRegisterResponse\x12y\n\x1aCudaSharedMemoryUnre'
    b'gister\x12,.inference.CudaSharedMemoryUnregisterRequest\x1a-.inference'
    b'.CudaSharedMemoryUnregisterResponse\x12O\n\x0cTraceSetting\x12\x1e.inference.'
    b'TraceSettingRequest\x1a\x1f.inference.TraceSettingResponse\x12L\n\x0bLogSetti'
    b'ngs\x12\x1d.inference.LogSettingsRequest\x1a\x1e.inference.LogSettingsRespon'
    b'seb\x06proto3'
)


def _message(name):
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName("inference." + name))


ServerLiveRequest = _message("ServerLiveRequest")
ServerLiveResponse = _message("ServerLiveResponse")
ServerReadyRequest = _message("ServerReadyRequest")
ServerReadyResponse = _message("ServerReadyResponse")
ModelReadyRequest = _message("ModelReadyRequest")
ModelReadyResponse = _message("ModelReadyResponse")
ServerMetadataRequest = _message("ServerMetadataRequest")
ServerMetadataResponse = _message("ServerMetadataResponse")
ModelMetadataRequest = _message("ModelMetadataRequest")
ModelMetadataResponse = _message("ModelMetadataResponse")
InferParameter = _message("InferParameter")
InferTensorContents = _message("InferTensorContents")
ModelInferRequest = _message("ModelInferRequest")
ModelInferResponse = _message("ModelInferResponse")
ModelStreamInferResponse = _message("ModelStreamInferResponse")
ModelConfigRequest = _message("ModelConfigRequest")
ModelConfigResponse = _message("ModelConfigResponse")
ModelStatisticsRequest = _message("ModelStatisticsRequest")
StatisticDuration = _message("StatisticDuration")
InferStatistics = _message("InferStatistics")
InferResponseStatistics = _message("InferResponseStatistics")
InferBatchStatistics = _message("InferBatchStatistics")
MemoryUsage = _message("MemoryUsage")
ModelStatistics = _message("ModelStatistics")
ModelStatisticsResponse = _message("ModelStatisticsResponse")
ModelRepositoryParameter = _message("ModelRepositoryParameter")
RepositoryIndexRequest = _message("RepositoryIndexRequest")
RepositoryIndexResponse = _message("RepositoryIndexResponse")
RepositoryModelLoadRequest = _message("RepositoryModelLoadRequest")
RepositoryModelLoadResponse = _message("RepositoryModelLoadResponse")
RepositoryModelUnloadRequest = _message("RepositoryModelUnloadRequest")
RepositoryModelUnloadResponse = _message("RepositoryModelUnloadResponse")
SystemSharedMemoryStatusRequest = _message("SystemSharedMemoryStatusRequest")
SystemSharedMemoryStatusResponse = _message("SystemSharedMemoryStatusResponse")
SystemSharedMemoryRegisterRequest = _message("SystemSharedMemoryRegisterRequest")
SystemSharedMemoryRegisterResponse = _message("SystemSharedMemoryRegisterResponse")
SystemSharedMemoryUnregisterRequest = _message("SystemSharedMemoryUnregisterRequest")
SystemSharedMemoryUnregisterResponse = _message("SystemSharedMemoryUnregisterResponse")
CudaSharedMemoryStatusRequest = _message("CudaSharedMemoryStatusRequest")
CudaSharedMemoryStatusResponse = _message("CudaSharedMemoryStatusResponse")
CudaSharedMemoryRegisterRequest = _message("CudaSharedMemoryRegisterRequest")
CudaSharedMemoryRegisterResponse = _message("CudaSharedMemoryRegisterResponse")
CudaSharedMemoryUnregisterRequest = _message("CudaSharedMemoryUnregisterRequest")
CudaSharedMemoryUnregisterResponse = _message("CudaSharedMemoryUnregisterResponse")
TraceSettingRequest = _message("TraceSettingRequest")
TraceSettingResponse = _message("TraceSettingResponse")
LogSettingsRequest = _message("LogSettingsRequest")
LogSettingsResponse = _message("LogSettingsResponse")
ModelRateLimiter = _message("ModelRateLimiter")
ModelInstanceGroup = _message("ModelInstanceGroup")
ModelTensorReshape = _message("ModelTensorReshape")
ModelInput = _message("ModelInput")
ModelOutput = _message("ModelOutput")
BatchInput = _message("BatchInput")
BatchOutput = _message("BatchOutput")
ModelVersionPolicy = _message("ModelVersionPolicy")
ModelOptimizationPolicy = _message("ModelOptimizationPolicy")
ModelQueuePolicy = _message("ModelQueuePolicy")
ModelDynamicBatching = _message("ModelDynamicBatching")
ModelSequenceBatching = _message("ModelSequenceBatching")
ModelEnsembling = _message("ModelEnsembling")
ModelParameter = _message("ModelParameter")
ModelWarmup = _message("ModelWarmup")
ModelOperations = _message("ModelOperations")
ModelTransactionPolicy = _message("ModelTransactionPolicy")
ModelRepositoryAgents = _message("ModelRepositoryAgents")
ModelResponseCache = _message("ModelResponseCache")
ModelMetrics = _message("ModelMetrics")
ModelConfig = _message("ModelConfig")
DataType = EnumTypeWrapper(POOL.FindEnumTypeByName("inference.DataType"))
